"""Idle time and lock state by D-Bus. Questions are asked without waiting: a desktop that hangs must not hang us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject
from PySide6.QtDBus import QDBusConnection, QDBusMessage, QDBusPendingCallWatcher, QDBusVariant

TIMEOUT_MS = 2000
MAX_FAILURES = 3
FAILURES_PER_TRY = 60
"""After MAX_FAILURES nobody is asked but at each 60th time: the service is not there, or it comes up later."""


@dataclass(frozen=True, slots=True)
class Address:
    """A method that is called with no more than these words."""

    service: str
    path: str
    interface: str
    method: str
    words: tuple[str, ...] = ()


class Question(QObject):
    """Asked again and again; `value` is the last answer, None while there is none. `has_answered`: also "no such"."""

    def __init__(
        self, bus: QDBusConnection, address: Address, parent: QObject | None = None, asks_always: bool = False
    ) -> None:
        super().__init__(parent)
        self._bus = bus
        self._address = address
        self._asks_always = asks_always
        self.has_answered = False
        self._pending: QDBusPendingCallWatcher | None = None
        self._num_failures = 0
        self.value: Any = None

    def ask(self) -> None:
        if self._pending is not None or not self._is_worth_asking():
            return
        to = self._address
        message = QDBusMessage.createMethodCall(to.service, to.path, to.interface, to.method)
        message.setAutoStartService(False)
        message.setArguments(list(to.words))
        self._pending = QDBusPendingCallWatcher(self._bus.asyncCall(message, TIMEOUT_MS), self)
        self._pending.finished.connect(self._note_answer)

    def _is_worth_asking(self) -> bool:
        if self._asks_always or self._num_failures < MAX_FAILURES:
            return True
        self._num_failures += 1
        return self._num_failures % FAILURES_PER_TRY == 0

    def _note_answer(self, watcher: QDBusPendingCallWatcher) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        reply = pending.reply()
        pending.deleteLater()
        arguments = reply.arguments() if reply.type() is QDBusMessage.MessageType.ReplyMessage else []
        self.has_answered = True
        self.value = _plain(arguments[0]) if arguments else None
        self._num_failures = 0 if arguments else self._num_failures + 1


def _plain(value: Any) -> Any:
    return value.variant() if isinstance(value, QDBusVariant) else value


class BusSource(QObject):
    """One service. `idle` answers in milliseconds."""

    def __init__(
        self, name: str, bus: QDBusConnection, idle: Address | None = None, locked: Address | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self._idle = Question(bus, idle, self) if idle is not None else None
        self._locked = Question(bus, locked, self) if locked is not None else None

    def refresh(self) -> None:
        for question in (self._idle, self._locked):
            if question is not None:
                question.ask()

    def idle_s(self) -> float | None:
        value = self._idle.value if self._idle is not None else None
        return value / 1000 if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def is_fullscreen(self) -> bool | None:
        return None

    def is_locked(self) -> bool | None:
        value = self._locked.value if self._locked is not None else None
        return value if isinstance(value, bool) else None

    def close(self) -> None:
        self.deleteLater()


MUTTER = Address(
    "org.gnome.Mutter.IdleMonitor",
    "/org/gnome/Mutter/IdleMonitor/Core",
    "org.gnome.Mutter.IdleMonitor",
    "GetIdletime",
)
_SAVER = ("org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver", "org.freedesktop.ScreenSaver")
# In milliseconds on KDE (kscreenlocker, interface.cpp); whoever means seconds is taken for less idle, never for more.
SAVER_IDLE = Address(*_SAVER, "GetSessionIdleTime")
SAVER_ACTIVE = Address(*_SAVER, "GetActive")
LOGIND_LOCKED = Address(
    "org.freedesktop.login1",
    "/org/freedesktop/login1/session/auto",
    "org.freedesktop.DBus.Properties",
    "Get",
    ("org.freedesktop.login1.Session", "LockedHint"),
)


def bus_sources() -> list[BusSource]:
    """Best first. A service that is missing answers nothing."""
    sources = []
    session, system = QDBusConnection.sessionBus(), QDBusConnection.systemBus()
    if session.isConnected():
        sources.append(BusSource("GNOME's idle monitor", session, idle=MUTTER))
        sources.append(BusSource("the desktop's screen saver", session, idle=SAVER_IDLE, locked=SAVER_ACTIVE))
    if system.isConnected():
        sources.append(BusSource("systemd's session", system, locked=LOGIND_LOCKED))
    return sources
