"""The widgets: they show a View and say what the volunteer wants."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QObject, Qt, Signal
from PySide6.QtGui import QAccessible, QFocusEvent
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QLineEdit, QProgressBar, QWidget
from pytestqt.qtbot import QtBot

from client.status import AgentState, DeviceStatus, Status
from client.supervisor import Snapshot
from client.supervisor_table import Phase
from client.ui.pause_choice import PauseChoice
from client.ui.plan import plan_of
from client.ui.preferences import Preferences
from client.ui.view import Surroundings, View, Wish, view_of
from client.ui.window import MainWindow, save_picture
from protocol.join_link import JoinLink
from protocol.values import LayerRange
from tests.ui.agent_double import status_of
from tests.ui.conftest import shown_texts
from tests.ui.facts_double import FACTS

AFTER = "After the current answers"
SERVING = view_of(Snapshot(Phase.CONTRIBUTING, status_of("serving"), num_tokens=128_934))
DOWNLOADING = view_of(Snapshot(Phase.CONTRIBUTING, status_of("downloading:41")))
STOPPED = view_of(Snapshot())
MARKUP = "<img src=file:///etc/hostname><b>bold</b>"


@pytest.fixture
def window(qtbot: QtBot) -> MainWindow:
    window = MainWindow()
    qtbot.addWidget(window)
    window.show_pool("pool.example.org", fixed=False)
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
    assert "Pool “Friends of the llama” at pool.example.org" in texts
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
    for view, wish in ((STOPPED, Wish.CONTRIBUTE), (SERVING, Wish.PAUSE)):
        window.show_view(view)
        with qtbot.waitSignal(window.wished) as blocker:
            qtbot.keyClick(window.button, Qt.Key.Key_Space)
        assert blocker.args == [wish]


def test_the_keyboard_gets_a_ring_and_the_mouse_none(window: MainWindow) -> None:
    for reason, ring in ((Qt.FocusReason.TabFocusReason, True), (Qt.FocusReason.MouseFocusReason, False)):
        QApplication.sendEvent(window.button, QFocusEvent(QEvent.Type.FocusIn, reason))
        assert window.button.property("ring") is ring


def test_without_a_pool_the_button_takes_the_address_first(window: MainWindow, qtbot: QtBot) -> None:
    window.show_pool(None, fixed=False)
    field = window.findChild(QLineEdit)
    field.setText("ftp://pool.example.org")
    with qtbot.assertNotEmitted(window.wished):
        window.button.click()
    assert any("pool's link begins with" in text for text in shown_texts(window))
    emitted: list[object] = []
    window.pool_chosen.connect(lambda link: emitted.append(link))
    window.wished.connect(lambda wish: emitted.append(wish))
    field.setText("https://pool.example.org/#invite=abcdefgh")
    qtbot.keyClick(field, Qt.Key.Key_Return)
    assert emitted == [JoinLink("https://pool.example.org", "", "abcdefgh"), Wish.CONTRIBUTE]


def test_a_pause_needs_no_address(window: MainWindow, qtbot: QtBot) -> None:
    window.show_pool(None, fixed=False)
    window.show_view(SERVING)
    with qtbot.waitSignal(window.wished):
        window.button.click()


def test_the_menu_beside_the_button_pauses_for_a_while(window: MainWindow, qtbot: QtBot) -> None:
    assert not window.pause_button.isVisible()
    window.show_view(SERVING)
    assert window.pause_button.isVisible()
    actions = window.pause_button.menu().actions()
    assert [action.text() for action in actions] == [*(choice.value for choice in PauseChoice), AFTER]
    with qtbot.waitSignal(window.pause_chosen) as blocker:
        actions[1].trigger()
    assert blocker.args == [PauseChoice.QUARTER_HOUR, False]


def test_in_that_menu_the_answers_can_come_first(window: MainWindow, qtbot: QtBot) -> None:
    window.show_view(SERVING)
    after = window.pause_button.menu().actions()[-1]
    assert after.isVisible()
    with qtbot.waitSignal(window.pause_chosen) as blocker:
        after.menu().actions()[0].trigger()
    assert blocker.args == [PauseChoice.UNTIL_RESUMED, True]
    window.show_view(view_of(Snapshot(Phase.FINISHING, status_of("serving"))))
    assert window.pause_button.isVisible()
    assert not after.isVisible(), "it is going on"


def test_before_the_first_click_it_says_what_will_happen(window: MainWindow) -> None:
    window.show_view(view_of(Snapshot(), Surroundings(plan=plan_of(FACTS, False, Preferences()))))
    texts = shown_texts(window)
    assert "NVIDIA GeForce RTX 4090, 24 GB" in texts
    assert any("2.9 GB, into" in text and "runtime" in text for text in texts)
    assert any("up to 50 GB, into" in text and "(81 GB free)" in text for text in texts)
    assert any(text.startswith("By itself, when another program needs the GPU") for text in texts)
    assert "Tokens served" not in texts
    window.show_view(SERVING)
    assert "NVIDIA GeForce RTX 4090, 24 GB" not in shown_texts(window)


def test_the_keyboard_reaches_everything(window: MainWindow, qtbot: QtBot) -> None:
    window.show_view(SERVING)
    window.activateWindow()
    window.button.setFocus()
    reached: list[QWidget] = []
    for _ in range(12):
        widget = QApplication.focusWidget() or window.focusWidget()
        reached.append(widget)
        qtbot.keyClick(widget, Qt.Key.Key_Tab)
    names = {widget.accessibleName() for widget in reached}
    assert {"Pause", "Pause for how long", "Settings", "Change pool…", "Why did it pause?", "Open the log"} <= names


def test_links_say_what_is_wished(window: MainWindow, qtbot: QtBot) -> None:
    buttons = {button.text(): button for button in window.findChildren(QAbstractButton)}
    for text, signal in (
        ("Settings", window.settings_wished),
        ("Why did it pause?", window.history_wished),
        ("Open the log", window.log_wished),
    ):
        with qtbot.waitSignal(signal):
            buttons[text].click()


def test_the_pool_can_be_changed_unless_the_command_line_says_it(window: MainWindow) -> None:
    link = next(button for button in window.findChildren(QAbstractButton) if button.text() == "Change pool…")
    assert link.isVisible()
    link.click()
    assert window.pool_form.isVisible()
    link.click()
    assert not window.pool_form.isVisible()
    window.show_pool("pool.example.org", fixed=True)
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
