"""The page of the settings about the app itself. Counts at once."""

from __future__ import annotations

import msgspec
from PySide6.QtCore import Signal
from PySide6.QtWidgets import QButtonGroup, QRadioButton, QWidget

from client.ui.preferences import CloseAction, Preferences
from client.ui.settings_rows import Card, Page, TickBox, silent

_INDENT = 26
_CLOSE = {
    CloseAction.KEEP: "Keep running in the tray",
    CloseAction.QUIT: "Quit, and leave the pool",
    CloseAction.ASK: "Ask me",
}


class AppPage(Page):
    """Start at login is not a preference but the system's entry: it is shown as it is, and changed when wished."""

    changed = Signal(Preferences)
    autostart_wished = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("This app", parent)
        self._preferences = Preferences()
        self._autostart = TickBox("Start DecentLLM when I log in")
        self._hidden = TickBox("In the tray, without this window")
        self._close: dict[CloseAction, QRadioButton] = {}
        self._add_start(self.add_card("Start"))
        self._add_close(self.add_card("When the window is closed"))
        self.show_preferences(self._preferences)

    def _add_start(self, card: Card) -> None:
        card.add(self._autostart)
        card.add(self._hidden, indent=_INDENT)
        card.explain("If it was contributing when it ended, it goes on with that; a pause by hand stays.")
        self._problem = card.explain("", "alert")
        self._autostart.toggled.connect(lambda checked: self.autostart_wished.emit(checked))
        self._hidden.toggled.connect(lambda checked: self._change(starts_hidden=checked))

    def _add_close(self, card: Card) -> None:
        group = QButtonGroup(self)
        for action, text in _CLOSE.items():
            button = QRadioButton(text)
            button.toggled.connect(
                lambda checked, action=action: self._change(close_action=action) if checked else None
            )
            group.addButton(button)
            self._close[action] = button
            card.add(button)
        card.explain("Where the desktop has no tray, closing the window always quits.")

    def show_preferences(self, preferences: Preferences) -> None:
        self._preferences = preferences
        with silent(self._hidden, *self._close.values()):
            self._hidden.setChecked(preferences.starts_hidden)
            self._close[preferences.close_action].setChecked(True)

    def show_autostart(self, is_on: bool, problem: str = "") -> None:
        with silent(self._autostart):
            self._autostart.setChecked(is_on)
        self._hidden.setEnabled(is_on)
        self._problem.show_text(problem)

    def _change(self, **fields: object) -> None:
        self._preferences = msgspec.structs.replace(self._preferences, **fields)
        self.changed.emit(self._preferences)
