"""The volunteer's own pause: kept by the wall clock, since it outlives the agent, the app and a suspended computer."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Signal

from client.ui.pause_choice import ManualPause

LOOK_AGAIN_S = 30.0
"""A timer stands still while the computer sleeps; the wall clock does not."""


class ManualPauseClock(QObject):
    """Emits `over` when a pause that has an end is over. `wall` is seconds since 1970."""

    over = Signal()

    def __init__(self, wall: Callable[[], float] = time.time, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._wall = wall
        self.pause: ManualPause | None = None
        self._timer = QTimer(self, singleShot=True)
        self._timer.timeout.connect(self.look)

    def hold(self, pause: ManualPause | None) -> None:
        self.pause = pause
        self._timer.stop()
        self.look()

    def look(self) -> None:
        now_s = self._wall()
        remaining_s = None if self.pause is None else self.pause.remaining_s(now_s)
        if self.pause is None or remaining_s is None:
            return
        if self.pause.is_over(now_s):
            self.pause = None
            self.over.emit()
            return
        self._timer.start(int(min(LOOK_AGAIN_S, remaining_s) * 1000) + 1)
