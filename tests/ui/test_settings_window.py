"""The settings as a whole: names for everything, keyboard, one truth."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible
from PySide6.QtWidgets import QAbstractButton, QAbstractSpinBox, QLineEdit, QListWidget, QTabWidget, QWidget
from pytestqt.qtbot import QtBot

from client.ui.preferences import CloseAction, Preferences
from client.ui.settings_window import SettingsWindow
from protocol.pause import PauseMode, PauseRules


@pytest.fixture
def window(qtbot: QtBot) -> SettingsWindow:
    window = SettingsWindow()
    qtbot.addWidget(window)
    window.show()
    return window


def usable(window: SettingsWindow) -> list[QWidget]:
    kinds = (QAbstractButton, QAbstractSpinBox, QLineEdit, QListWidget)
    found = [widget for kind in kinds for widget in window.findChildren(kind)]
    # A spin box's own field and a bar's own arrows speak for their parent.
    return [widget for widget in found if not widget.objectName().startswith(("qt_", "Scroll"))]


def test_everything_that_can_be_used_has_a_name(window: SettingsWindow) -> None:
    for widget in usable(window):
        interface = QAccessible.queryAccessibleInterface(widget)
        assert interface.text(QAccessible.Text.Name), widget


def test_changes_of_all_pages_come_together(window: SettingsWindow) -> None:
    told: list[Preferences] = []
    window.changed.connect(lambda preferences: told.append(preferences))
    window.show_preferences(Preferences(join_link="https://pool.example.org", contributes=True))
    window.rules.changed.emit(PauseRules(mode=PauseMode.ALWAYS))
    window.limits.changed.emit(Preferences(name="Ada"))
    window.app.changed.emit(Preferences(close_action=CloseAction.QUIT))
    assert told[-1] == Preferences(
        join_link="https://pool.example.org",
        contributes=True,
        name="Ada",
        close_action=CloseAction.QUIT,
        rules=PauseRules(mode=PauseMode.ALWAYS),
    )


def test_it_says_when_it_is_looked_at(window: SettingsWindow, qtbot: QtBot) -> None:
    for change, is_shown in ((window.hide, False), (window.show, True)):
        with qtbot.waitSignal(window.looked_at) as blocker:
            change()
        assert blocker.args == [is_shown]


def test_the_keyboard_walks_through_every_page(window: SettingsWindow, qtbot: QtBot) -> None:
    tabs = window.findChild(QTabWidget)
    for index in range(tabs.count()):
        tabs.setCurrentIndex(index)
        tabs.tabBar().setFocus()
        reached = set()
        for _ in range(40):
            widget = window.focusWidget()
            reached.add(widget)
            qtbot.keyClick(widget, Qt.Key.Key_Tab)
        page = tabs.currentWidget()
        for kind in (QAbstractSpinBox, QLineEdit, QListWidget):
            boxes = [box for box in page.findChildren(kind) if box.isEnabled() and box.isVisibleTo(page)]
            own = [box for box in boxes if not box.objectName().startswith("qt_")]
            assert set(own) <= reached
