"""Readings by D-Bus, from fake services on a bus of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PySide6.QtDBus import QDBusConnection
from pytestqt.qtbot import QtBot

from client.desktop.bus import (
    FAILURES_PER_TRY,
    LOGIND_LOCKED,
    MAX_FAILURES,
    MUTTER,
    SAVER_ACTIVE,
    SAVER_IDLE,
    BusSource,
    Question,
    bus_sources,
)
from tests.fakes.private_bus import (
    FakeLogindSession,
    FakeMutter,
    FakeScreenSaver,
    connected,
    needs_bus,
    private_bus,
    serve,
)

LIMIT_MS = 20_000
pytestmark = needs_bus


@pytest.fixture
def address() -> Iterator[str]:
    with private_bus() as address:
        yield address


@pytest.fixture
def bus(address: str, qtbot: QtBot) -> Iterator[QDBusConnection]:
    with connected(address) as bus:
        yield bus


@pytest.fixture
def services(address: str) -> Iterator[QDBusConnection]:
    with connected(address) as services:
        yield services


def wait_for(qtbot: QtBot, source: BusSource, reading: Callable[[], object], expected: object) -> None:
    def is_there() -> bool:
        source.refresh()
        return reading() == expected

    qtbot.waitUntil(is_there, timeout=LIMIT_MS)


def test_gnome_tells_idle_milliseconds(qtbot: QtBot, bus: QDBusConnection, services: QDBusConnection) -> None:
    mutter = FakeMutter()
    serve(services, MUTTER.service, MUTTER.path, mutter)
    source = BusSource("GNOME", bus, idle=MUTTER)
    assert source.idle_s() is None
    wait_for(qtbot, source, source.idle_s, 4.5)
    mutter.idle_ms = 0
    wait_for(qtbot, source, source.idle_s, 0.0)
    assert source.is_locked() is None
    assert source.is_fullscreen() is None


def test_a_screen_saver_tells_idle_and_locked(qtbot: QtBot, bus: QDBusConnection, services: QDBusConnection) -> None:
    saver = FakeScreenSaver()
    serve(services, SAVER_IDLE.service, SAVER_IDLE.path, saver)
    source = BusSource("saver", bus, idle=SAVER_IDLE, locked=SAVER_ACTIVE)
    wait_for(qtbot, source, source.idle_s, 61.0)
    wait_for(qtbot, source, source.is_locked, False)
    saver.is_active = True
    wait_for(qtbot, source, source.is_locked, True)


def test_systemd_tells_locked(qtbot: QtBot, bus: QDBusConnection, services: QDBusConnection) -> None:
    session = FakeLogindSession()
    serve(services, LOGIND_LOCKED.service, LOGIND_LOCKED.path, session)
    source = BusSource("systemd", bus, locked=LOGIND_LOCKED)
    wait_for(qtbot, source, source.is_locked, True)
    session.is_locked = False
    wait_for(qtbot, source, source.is_locked, False)


def test_a_service_that_goes_is_not_known_any_more(
    qtbot: QtBot, bus: QDBusConnection, services: QDBusConnection
) -> None:
    mutter = FakeMutter()
    serve(services, MUTTER.service, MUTTER.path, mutter)
    source = BusSource("GNOME", bus, idle=MUTTER)
    wait_for(qtbot, source, source.idle_s, 4.5)
    services.unregisterService(MUTTER.service)
    wait_for(qtbot, source, source.idle_s, None)


def test_a_missing_service_is_asked_seldom(qtbot: QtBot, bus: QDBusConnection) -> None:
    question = Question(bus, MUTTER)
    for _ in range(MAX_FAILURES):
        question.ask()
        assert question._pending is not None
        qtbot.waitUntil(lambda: question._pending is None, timeout=LIMIT_MS)
    num_asked = 0
    for _ in range(FAILURES_PER_TRY):
        question.ask()
        num_asked += question._pending is not None
        qtbot.waitUntil(lambda: question._pending is None, timeout=LIMIT_MS)
    assert num_asked == 1
    assert question.value is None


def test_an_answer_of_another_kind_is_none(qtbot: QtBot, bus: QDBusConnection, services: QDBusConnection) -> None:
    """The service's answer to "locked" is a number here, and the other way round."""
    saver = FakeScreenSaver()
    serve(services, SAVER_IDLE.service, SAVER_IDLE.path, saver)
    source = BusSource("confused", bus, idle=SAVER_ACTIVE, locked=SAVER_IDLE)
    source.refresh()
    qtbot.waitUntil(lambda: source._idle.value is not None and source._locked.value is not None, timeout=LIMIT_MS)
    assert source.idle_s() is None
    assert source.is_locked() is None


def test_without_any_bus_there_is_no_source(monkeypatch: pytest.MonkeyPatch, qtbot: QtBot) -> None:
    monkeypatch.setattr(QDBusConnection, "isConnected", lambda _self: False)
    assert bus_sources() == []
