"""What the settings' pages are made of."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QImage, QWheelEvent
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from client.ui.settings_rows import Card, Gigabytes, Number, TickBox, silent


def test_the_wheel_scrolls_the_page_and_changes_no_number(qtbot: QtBot) -> None:
    for box in (Number("Percent", 1, 100), Gigabytes("Size", 1, 100)):
        qtbot.addWidget(box)
        box.setValue(20)
        where = QPointF(5, 5)
        event = QWheelEvent(
            where, where, QPoint(), QPoint(0, 120), Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        QApplication.sendEvent(box, event)
        assert box.value() == 20


def test_the_first_words_belong_to_the_control(qtbot: QtBot) -> None:
    card, box = Card("Title"), Number("Percent", 1, 100)
    qtbot.addWidget(card)
    card.line("More than", box, "of it")
    first = next(label for label in card.findChildren(QLabel) if label.text() == "More than")
    assert first.buddy() is box


def test_a_tick_is_drawn(qtbot: QtBot) -> None:
    pictures: list[QImage] = []
    for is_checked in (False, True):
        box = TickBox("x")
        qtbot.addWidget(box)
        box.setChecked(is_checked)
        pictures.append(box.grab().toImage())
    assert pictures[0] != pictures[1]


def test_what_is_shown_silently_is_not_heard(qtbot: QtBot) -> None:
    box = TickBox("x")
    qtbot.addWidget(box)
    with qtbot.assertNotEmitted(box.toggled), silent(box):
        box.setChecked(True)
    with qtbot.waitSignal(box.toggled):
        box.setChecked(False)
