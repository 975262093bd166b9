"""One app per user: a second start shows the first one's window, hands its join link over and ends."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

from PySide6.QtCore import QDeadlineTimer, QLockFile, QObject, QThread, QTimer, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from client.paths import LOCK_FILE
from client.ui.pool_link import parse_pool_link
from protocol.join_link import MAX_LINK_CHARACTERS, JoinLink, JoinLinkError, format_join_link

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4 * MAX_LINK_CHARACTERS + 1
"""A link of characters that take four bytes each, and the end of the line."""
_REQUEST_LIMIT_MS = 2000
_ANSWER_LIMIT_MS = 5000
_LOOK_AGAIN_MS = 50
_MAX_SOCKET_PATH = 100
"""A Unix socket's path has at most 103 to 107 bytes (unix(7): sun_path)."""


class SingleInstance(QObject):
    """The lock decides who is first, the socket only carries the request: with a socket alone two simultaneous starts
    could both win (vorta removes the other's server and does).

    A request is one line: a join link, or nothing. The answer is that the first one hangs up."""

    show_wished = Signal()
    link_offered = Signal(JoinLink)

    def __init__(self, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._lock = QLockFile(str(folder / LOCK_FILE))
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

    def show_first(self, link: JoinLink | None = None) -> bool:
        """Ask the first one to show its window, or to ask about the link. False if it does not answer."""
        limit = QDeadlineTimer(_ANSWER_LIMIT_MS)
        while not limit.hasExpired():
            socket = QLocalSocket()
            socket.connectToServer(self._name)
            if socket.waitForConnected(limit.remainingTime()):
                socket.write((format_join_link(link) if link is not None else "").encode() + b"\n")
                return _is_answered(socket, limit)
            QThread.msleep(_LOOK_AGAIN_MS)
        return False

    def release(self) -> None:
        self._server.close()
        self._lock.unlock()

    def _note_connection(self) -> None:
        while (socket := self._server.nextPendingConnection()) is not None:
            _Request(socket, self)

    def take(self, request: bytes) -> None:
        """What a second start says is checked as if it came from anywhere."""
        text = request.decode("utf-8", errors="replace").strip()
        if not text:
            self.show_wished.emit()
            return
        try:
            self.link_offered.emit(parse_pool_link(text))
        except JoinLinkError as error:
            logger.info("a second start had a link that is none: %s", error)
            self.show_wished.emit()


class _Request(QObject):
    """One line from one connection, of bounded length and time."""

    def __init__(self, socket: QLocalSocket, instance: SingleInstance) -> None:
        super().__init__(socket)
        self._socket = socket
        self._instance = instance
        self._data = b""
        self._is_done = False
        socket.setReadBufferSize(MAX_REQUEST_BYTES)
        socket.readyRead.connect(self._read)
        socket.disconnected.connect(self._end)
        QTimer.singleShot(_REQUEST_LIMIT_MS, self, self._end)
        self._read()

    def _read(self) -> None:
        self._data += bytes(self._socket.read(MAX_REQUEST_BYTES - len(self._data)).data())
        if b"\n" in self._data or len(self._data) >= MAX_REQUEST_BYTES:
            self._end()

    def _end(self) -> None:
        """A line that did not end is no request, but somebody wants something: the window answers."""
        if self._is_done:
            return
        self._is_done = True
        line, end, _ = self._data.partition(b"\n")
        self._socket.disconnectFromServer()
        self._socket.deleteLater()
        self._instance.take(line if end else b"")


def _is_answered(socket: QLocalSocket, limit: QDeadlineTimer) -> bool:
    """The system alone accepts connections for an app that hangs: only hanging up is an answer."""
    if socket.state() is QLocalSocket.LocalSocketState.UnconnectedState:
        return True
    return socket.waitForDisconnected(limit.remainingTime())


def _socket_name(folder: Path) -> str:
    path = str(folder / "gui.socket")
    if sys.platform != "win32" and len(path.encode()) <= _MAX_SOCKET_PATH:
        return path
    return f"decentllm-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
