"""Polls the desktop session once a second, only while somebody needs to know."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from PySide6.QtCore import QObject, QTimer, Signal

from client.desktop.session import DesktopSession, SourceNames, open_session
from client.desktop.sifter import Sifter
from client.status import SessionReading
from client.ui.preferences import Preferences
from protocol.pause import DEFAULT_RULES, PauseMode

POLL_MS = 1000


class Session(Protocol):
    """What of DesktopSession is used here."""

    def refresh(self) -> None: ...
    def read(self) -> SessionReading: ...
    def names(self) -> SourceNames: ...
    def close(self) -> None: ...


def open_desktop() -> DesktopSession:
    return open_session(os.environ)


class SessionWatch(QObject):
    """`open_session` is called when the first reading is needed."""

    read = Signal(SessionReading)
    """A reading that the agent should know."""
    named = Signal(SourceNames)
    """While somebody looks: where readings come from."""

    def __init__(self, opener: Callable[[], Session] = open_desktop, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._opener = opener
        self._session: Session | None = None
        self._sifter = Sifter()
        self._away_after_s = DEFAULT_RULES.away_after_s or 0.0
        self._is_reading_needed = False
        self._is_looked_at = False
        self._timer = QTimer(self, interval=POLL_MS)
        self._timer.timeout.connect(self.poll)

    def follow(self, preferences: Preferences, is_listening: bool) -> None:
        """What the rules need, as long as there is an agent to tell."""
        rules = preferences.rules
        self._away_after_s = rules.away_after_s or DEFAULT_RULES.away_after_s or 0.0
        is_needed = is_listening and (rules.mode or DEFAULT_RULES.mode) is not PauseMode.ALWAYS
        if is_needed and not self._is_reading_needed:
            self._sifter.forget()
        self._is_reading_needed = is_needed
        self._run()

    def look(self, is_looked_at: bool) -> None:
        """The settings show the sources' names."""
        self._is_looked_at = is_looked_at
        self._run()

    def is_running(self) -> bool:
        return self._timer.isActive()

    def close(self) -> None:
        self._timer.stop()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def poll(self) -> None:
        session = self._open_session()
        session.refresh()
        if self._is_looked_at:
            self.named.emit(session.names())
        if not self._is_reading_needed:
            return
        reading = session.read()
        if self._sifter.is_worth_telling(reading, self._away_after_s, time.monotonic()):
            self.read.emit(reading)

    def _open_session(self) -> Session:
        if self._session is None:
            self._session = self._opener()
        return self._session

    def _run(self) -> None:
        is_needed = self._is_reading_needed or self._is_looked_at
        if is_needed and not self._timer.isActive():
            self._timer.start()
            self.poll()
        elif not is_needed:
            self._timer.stop()
