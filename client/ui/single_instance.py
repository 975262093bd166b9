"""One app per user: a second start shows the first one's window and ends."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from PySide6.QtCore import QDeadlineTimer, QLockFile, QObject, QThread, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

_ANSWER_LIMIT_MS = 5000
_LOOK_AGAIN_MS = 50
_MAX_SOCKET_PATH = 100
"""A Unix socket's path has at most 103 to 107 bytes (unix(7): sun_path)."""


class SingleInstance(QObject):
    """The lock decides who is first, the socket only carries the request: with a socket alone two simultaneous starts
    could both win (vorta removes the other's server and does)."""

    show_wished = Signal()

    def __init__(self, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._lock = QLockFile(str(folder / "gui.lock"))
        # 0: a lock is stale only when its process has ended, however old it is.
        self._lock.setStaleLockTime(0)
        self._name = _socket_name(folder)
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._note_connection)

    def acquire(self) -> bool:
        """True for the first one, who hears `show_wished` from now on."""
        if not self._lock.tryLock(0):
            return False
        # We hold the lock: a socket that is in the way was left by a process that was killed.
        QLocalServer.removeServer(self._name)
        self._server.listen(self._name)
        return True

    def show_first(self) -> bool:
        """Ask the first one to show its window. False if it does not answer."""
        limit = QDeadlineTimer(_ANSWER_LIMIT_MS)
        while not limit.hasExpired():
            socket = QLocalSocket()
            socket.connectToServer(self._name)
            if socket.waitForConnected(limit.remainingTime()):
                return _is_answered(socket, limit)
            QThread.msleep(_LOOK_AGAIN_MS)
        return False

    def release(self) -> None:
        self._server.close()
        self._lock.unlock()

    def _note_connection(self) -> None:
        """The connection itself is the message: nothing is read from it."""
        while (socket := self._server.nextPendingConnection()) is not None:
            socket.disconnected.connect(socket.deleteLater)
            socket.disconnectFromServer()
            self.show_wished.emit()


def _is_answered(socket: QLocalSocket, limit: QDeadlineTimer) -> bool:
    """The answer is that the first one hangs up. The system alone accepts connections for an app that hangs."""
    if socket.state() is QLocalSocket.LocalSocketState.UnconnectedState:
        return True
    return socket.waitForDisconnected(limit.remainingTime())


def _socket_name(folder: Path) -> str:
    path = str(folder / "gui.socket")
    if sys.platform != "win32" and len(path.encode()) <= _MAX_SOCKET_PATH:
        return path
    return f"decentllm-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
