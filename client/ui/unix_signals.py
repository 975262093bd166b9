"""Ctrl-C, `kill` and a session's end ask the app to leave the pool properly."""

from __future__ import annotations

import signal
import socket

from PySide6.QtCore import QObject, QSocketNotifier, Signal


class QuitSignals(QObject):
    """Python runs a signal's handler only between bytecodes, and Qt's loop is none: the wake-up socket tells Qt."""

    received = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._notifier = QSocketNotifier(self._reader.fileno(), QSocketNotifier.Type.Read, self)
        self._notifier.activated.connect(self._note)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {which: signal.signal(which, _leave_to_qt) for which in (signal.SIGINT, signal.SIGTERM)}

    def close(self) -> None:
        for which, handler in self._old_handlers.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._notifier.setEnabled(False)
        self._reader.close()
        self._writer.close()

    def _note(self) -> None:
        self._reader.recv(64)
        self.received.emit()


def _leave_to_qt(_number: int, _frame: object) -> None:
    """Only there so that Python does not end the process; the wake-up socket has the news."""
