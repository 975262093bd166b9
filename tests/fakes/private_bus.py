"""A D-Bus of its own, so that a test never meets the desktop's; and services on it that Qt's own module provides."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from PySide6.QtCore import ClassInfo, Property, QObject, Signal, Slot
from PySide6.QtDBus import QDBusConnection

needs_bus = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")
_numbers = count()


@contextmanager
def private_bus() -> Iterator[str]:
    """Its address."""
    argv = ["dbus-daemon", "--session", "--print-address=1", "--nofork", "--nopidfile"]
    daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert daemon.stdout is not None
    try:
        yield daemon.stdout.readline().decode().strip()
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()


@contextmanager
def connected(address: str) -> Iterator[QDBusConnection]:
    name = f"test-{next(_numbers)}"
    yield QDBusConnection.connectToBus(address, name)
    QDBusConnection.disconnectFromBus(name)


def serve(bus: QDBusConnection, service: str, path: str, served: QObject) -> None:
    assert bus.registerObject(path, served, QDBusConnection.RegisterOption.ExportAllContents)
    assert bus.registerService(service)


@ClassInfo({"D-Bus Interface": "org.gnome.Mutter.IdleMonitor"})
class FakeMutter(QObject):
    idle_ms = 4500

    @Slot(result=int)
    def GetIdletime(self) -> int:  # noqa: N802 - the interface's name
        return self.idle_ms


@ClassInfo({"D-Bus Interface": "org.freedesktop.ScreenSaver"})
class FakeScreenSaver(QObject):
    is_active = False

    @Slot(result=int)
    def GetSessionIdleTime(self) -> int:  # noqa: N802
        return 61_000

    @Slot(result=bool)
    def GetActive(self) -> bool:  # noqa: N802
        return self.is_active


@ClassInfo({"D-Bus Interface": "org.freedesktop.login1.Session"})
class FakeLogindSession(QObject):
    is_locked = True

    def _is_locked(self) -> bool:
        return self.is_locked

    LockedHint = Property(bool, _is_locked)


@ClassInfo({"D-Bus Interface": "org.kde.StatusNotifierWatcher"})
class FakeWatcher(QObject):
    """What a panel with a tray provides (freedesktop.org, StatusNotifierItem)."""

    StatusNotifierItemRegistered = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.items: list[str] = []

    @Slot(str)
    def RegisterStatusNotifierItem(self, item: str) -> None:  # noqa: N802
        self.items.append(item)

    def _has_host(self) -> bool:
        return True

    IsStatusNotifierHostRegistered = Property(bool, _has_host)
