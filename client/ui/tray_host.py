"""Whether the desktop's panel can take an icon yet.

Qt asks this once, when the first tray icon is made, and keeps the answer for good (QGenericUnixTheme,
isDBusTrayAvailable): an app that starts at login before the panel would never get an icon. So we ask ourselves first.
"""

from __future__ import annotations

import os
from typing import Protocol

from PySide6.QtCore import QObject
from PySide6.QtDBus import QDBusConnection
from PySide6.QtGui import QGuiApplication

from client.desktop.bus import Address, Question
from client.desktop.session import is_x11_session
from client.desktop.source import SourceError
from client.desktop.x11 import has_system_tray

WATCHER = "org.kde.StatusNotifierWatcher"
_HAS_HOST = Address(
    WATCHER,
    "/StatusNotifierWatcher",
    "org.freedesktop.DBus.Properties",
    "Get",
    (WATCHER, "IsStatusNotifierHostRegistered"),
)


class TrayHost(Protocol):
    def is_ready(self) -> bool:
        """Asked again and again; may need a second call to know."""


class AnyHost:
    """Where Qt may be asked at any time: Windows, macOS, no screen."""

    def is_ready(self) -> bool:
        return True


class UnixHost(QObject):
    """A panel that takes items by D-Bus, or one of the older kind that takes windows (XEmbed, X11 only)."""

    def __init__(self, bus: QDBusConnection, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._bus = bus
        self._question = Question(bus, _HAS_HOST, self, asks_always=True)

    def is_ready(self) -> bool:
        if self._question.value is True:
            return True
        if self._bus.isConnected():
            self._question.ask()
        is_newer_kind_missing = self._question.has_answered or not self._bus.isConnected()
        return is_newer_kind_missing and _takes_windows()


def _takes_windows() -> bool:
    if not is_x11_session(os.environ):
        return False
    try:
        return has_system_tray()
    except SourceError:
        return False


def tray_host(parent: QObject) -> TrayHost:
    if QGuiApplication.platformName() not in ("xcb", "wayland"):
        return AnyHost()
    return UnixHost(QDBusConnection.sessionBus(), parent)
