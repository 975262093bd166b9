"""The choices of how long to pause, for the window's button and for the tray."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QMenu, QWidget

from client.ui.pause_choice import PauseChoice


class PauseMenu(QMenu):
    """Emits `chosen`."""

    chosen = Signal(PauseChoice)

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(title, parent)
        self.setAccessibleName(title)
        for choice in PauseChoice:
            action = self.addAction(choice.value)
            action.triggered.connect(lambda _checked=False, choice=choice: self.chosen.emit(choice))
