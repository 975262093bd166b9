"""The widgets: they show a View and say what the volunteer wants."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QAccessible, QFocusEvent
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QLineEdit, QProgressBar, QWidget
from pytestqt.qtbot import QtBot

from client.status import AgentState, DeviceStatus, Status
from client.supervisor import Phase, Snapshot
from client.ui.tray import Tray
from client.ui.view import View, Wish, view_of
from client.ui.window import MainWindow, save_picture
from protocol.values import LayerRange
from tests.fakes.fake_agent import status_of
from tests.ui.conftest import shown_texts

SERVING = view_of(Snapshot(Phase.CONTRIBUTING, status_of("serving"), num_tokens=128_934))
DOWNLOADING = view_of(Snapshot(Phase.CONTRIBUTING, status_of("downloading:41")))
STOPPED = view_of(Snapshot())
MARKUP = "<img src=file:///etc/hostname><b>bold</b>"


@pytest.fixture
def window(qtbot: QtBot) -> MainWindow:
    window = MainWindow()
    qtbot.addWidget(window)
    window.show_pool("https://pool.example.org", fixed=False)
    window.show_view(STOPPED)
    window.show()
    return window


def hostile_view() -> View:
    device = DeviceStatus("cpu", MARKUP, AgentState.SERVING, MARKUP, LayerRange(0, 1), 1)
    status = Status(AgentState.SERVING, MARKUP, MARKUP, (device,), 1, 1)
    return view_of(Snapshot(Phase.CONTRIBUTING, status))


def test_it_shows_what_is_served(window: MainWindow) -> None:
    window.show_view(SERVING)
    texts = shown_texts(window)
    assert "Serving layers 0-11 of 24" in texts
    assert "Pool “Friends of the llama” at https://pool.example.org" in texts
    assert {"NVIDIA GeForce RTX 4090", "128,934", "3"} <= set(texts)
    assert window.button.text() == "Pause"


def test_it_shows_progress_only_while_bytes_move(window: MainWindow) -> None:
    window.show_view(DOWNLOADING)
    bars = window.findChildren(QProgressBar)
    assert [bar.value() for bar in bars if bar.isVisible()] == [41, 41]
    window.show_view(SERVING)
    assert not [bar for bar in window.findChildren(QProgressBar) if bar.isVisible()]


def test_every_label_shows_plain_text(window: MainWindow) -> None:
    window.show_view(hostile_view())
    labels = window.findChildren(QLabel)
    assert len(labels) > 10
    assert {label.textFormat() for label in labels} == {Qt.TextFormat.PlainText}
    assert sum(MARKUP in text for text in shown_texts(window)) >= 3


def test_no_widget_has_a_tooltip_that_could_be_markup(window: MainWindow) -> None:
    window.show_view(hostile_view())
    assert not [child for child in window.findChildren(QWidget) if "<" in child.toolTip()]


def test_everything_that_can_be_used_has_a_name(window: MainWindow) -> None:
    window.show_view(DOWNLOADING)
    window.show_pool(None, fixed=False)
    usable = [
        *window.findChildren(QAbstractButton),
        *window.findChildren(QLineEdit),
        *[bar for bar in window.findChildren(QProgressBar) if bar.isVisible()],
    ]
    for widget in usable:
        interface = QAccessible.queryAccessibleInterface(widget)
        assert interface.text(QAccessible.Text.Name), widget


def test_a_burst_of_mouse_clicks_is_one_wish(window: MainWindow, qtbot: QtBot) -> None:
    wishes: list[Wish] = []
    window.button.wished.connect(lambda wish: wishes.append(wish))
    for _ in range(10):
        qtbot.mouseClick(window.button, Qt.MouseButton.LeftButton)
        qtbot.mouseDClick(window.button, Qt.MouseButton.LeftButton)
    assert wishes == [Wish.CONTRIBUTE]


def test_the_button_asks_for_what_it_says(window: MainWindow, qtbot: QtBot) -> None:
    with qtbot.waitSignal(window.contribute_wished):
        qtbot.keyClick(window.button, Qt.Key.Key_Space)
    window.show_view(SERVING)
    with qtbot.waitSignal(window.pause_wished):
        qtbot.keyClick(window.button, Qt.Key.Key_Space)


def test_the_keyboard_gets_a_ring_and_the_mouse_none(window: MainWindow) -> None:
    for reason, ring in ((Qt.FocusReason.TabFocusReason, True), (Qt.FocusReason.MouseFocusReason, False)):
        QApplication.sendEvent(window.button, QFocusEvent(QEvent.Type.FocusIn, reason))
        assert window.button.property("ring") is ring


def test_without_a_pool_the_button_takes_the_address_first(window: MainWindow, qtbot: QtBot) -> None:
    window.show_pool(None, fixed=False)
    field = window.findChild(QLineEdit)
    field.setText("ftp://pool.example.org")
    with qtbot.assertNotEmitted(window.contribute_wished):
        window.button.click()
    assert any("must look like http://" in text for text in shown_texts(window))
    emitted: list[str] = []
    window.pool_chosen.connect(lambda address: emitted.append(address))
    window.contribute_wished.connect(lambda: emitted.append("contribute"))
    field.setText("https://pool.example.org")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert emitted == ["https://pool.example.org", "contribute"]


def test_the_pool_can_be_changed_unless_the_command_line_says_it(window: MainWindow) -> None:
    link = next(button for button in window.findChildren(QAbstractButton) if button.text() == "Change pool…")
    assert link.isVisible()
    link.click()
    assert window.pool_form.isVisible()
    link.click()
    assert not window.pool_form.isVisible()
    window.show_pool("https://pool.example.org", fixed=True)
    assert not link.isVisible()


def test_closing_is_a_question_to_the_app(window: MainWindow, qtbot: QtBot) -> None:
    with qtbot.waitSignal(window.closed):
        window.close()
    assert window.isVisible()


def test_a_problem_of_the_app_is_shown_until_it_is_gone(window: MainWindow) -> None:
    window.show_problem("The settings file cannot be used.")
    assert "The settings file cannot be used." in shown_texts(window)
    window.show_problem("")
    assert "The settings file cannot be used." not in shown_texts(window)


def test_long_names_do_not_widen_the_window(window: MainWindow) -> None:
    device = DeviceStatus("cpu", "W" * 5000, AgentState.SERVING, "M" * 5000, LayerRange(0, 1), 1)
    status = Status(AgentState.SERVING, "S" * 50_000, "P" * 5000, (device,))
    window.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status)))
    QApplication.processEvents()
    assert window.width() < 1000
    assert window.height() < 2000


def test_devices_come_and_go(window: MainWindow) -> None:
    device = status_of("serving").devices[0]
    for count in (3, 1, 8, 0):
        status = Status(AgentState.SERVING, devices=(device,) * count)
        window.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status)))
        assert shown_texts(window).count("NVIDIA GeForce RTX 4090") == count


def test_its_picture_can_be_taken(window: MainWindow, tmp_path: Path) -> None:
    window.show_view(SERVING)
    save_picture(window, tmp_path / "window.png")
    assert (tmp_path / "window.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match="could not be written"):
        save_picture(window, tmp_path / "missing" / "window.png")


def test_without_a_tray_the_tray_says_so(qtbot: QtBot) -> None:
    tray = Tray()
    tray.show_view(SERVING)
    if QApplication.platformName() == "offscreen":
        tray.start()
        assert not tray.is_available()
    tray.stop()


def test_the_trays_menu_escapes_mnemonics(qtbot: QtBot) -> None:
    tray = Tray()
    status = Status(AgentState.WAITING)
    tray.show_view(view_of(Snapshot(Phase.CONTRIBUTING, status)))
    assert [action.text() for action in tray.menu_actions()] == [
        "Waiting for work",
        "Open DecentLLM",
        "Pause",
        "Quit",
    ]


class Emitter(QObject):
    signal = Signal(bool)


def test_this_pyside_does_not_lose_references(qapp: QApplication) -> None:
    """PySide6 6.12.0 on CPython 3.11 loses a reference of True with each emit and aborts after some hundred."""
    emitter = Emitter()
    received: list[bool] = []
    emitter.signal.connect(lambda value: received.append(value))
    for _ in range(5000):
        emitter.signal.emit(True)
    assert len(received) == 5000
