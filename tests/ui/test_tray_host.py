"""Whether a panel can take an icon yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PySide6.QtDBus import QDBusConnection
from pytestqt.qtbot import QtBot

from client.desktop.source import SourceError
from client.ui import tray_host
from client.ui.tray_host import WATCHER, AnyHost, UnixHost
from tests.fakes.private_bus import FakeWatcher, connected, needs_bus, private_bus, serve
from tests.ui.conftest import LIMIT_MS


@pytest.fixture
def bus(qtbot: QtBot) -> Iterator[QDBusConnection]:
    with private_bus() as address, connected(address) as bus:
        yield bus


@pytest.fixture(autouse=True)
def _no_older_tray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":4095")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("XDG_SESSION_TYPE", "x11")


@needs_bus
def test_a_panel_that_takes_items_is_seen_when_it_comes(bus: QDBusConnection, qtbot: QtBot) -> None:
    host = UnixHost(bus)
    qtbot.waitUntil(lambda: not host.is_ready() and host._question.has_answered, timeout=LIMIT_MS)
    watcher = FakeWatcher()
    serve(bus, WATCHER, "/StatusNotifierWatcher", watcher)
    qtbot.waitUntil(host.is_ready, timeout=LIMIT_MS)


@needs_bus
@pytest.mark.parametrize(("session", "is_ready"), [("x11", True), ("wayland", False)])
def test_a_panel_of_the_older_kind_counts_under_x11(
    bus: QDBusConnection, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch, session: str, is_ready: bool
) -> None:
    monkeypatch.setattr(tray_host, "has_system_tray", lambda: True)
    monkeypatch.setenv("XDG_SESSION_TYPE", session)
    host = UnixHost(bus)
    assert not host.is_ready(), "the newer kind is asked first"
    qtbot.waitUntil(lambda: host._question.has_answered, timeout=LIMIT_MS)
    assert host.is_ready() is is_ready


def test_without_any_bus_the_older_kind_is_enough(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tray_host, "has_system_tray", lambda: True)
    assert UnixHost(QDBusConnection("no such connection")).is_ready()


def test_without_a_server_there_is_no_older_tray(qtbot: QtBot) -> None:
    with pytest.raises(SourceError):
        tray_host.has_system_tray()
    assert not tray_host._takes_windows()


def test_elsewhere_qt_may_be_asked_at_any_time() -> None:
    assert AnyHost().is_ready()
