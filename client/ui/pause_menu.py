"""The choices of how long to pause, for the window's button and for the tray."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QMenu, QWidget

from client.ui.pause_choice import AFTER_ANSWERS, PauseChoice


class PauseMenu(QMenu):
    """Emits `chosen`: for how long, and whether the answers that run come first."""

    chosen = Signal(PauseChoice, bool)

    def __init__(self, title: str, parent: QWidget | None = None, *, after_answers: bool = False) -> None:
        super().__init__(title, parent)
        self.setAccessibleName(title)
        for choice in AFTER_ANSWERS if after_answers else PauseChoice:
            action = self.addAction(choice.value)
            action.triggered.connect(lambda _checked=False, choice=choice: self.chosen.emit(choice, after_answers))
