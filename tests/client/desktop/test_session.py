"""All sources together."""

from __future__ import annotations

import pytest

from client.desktop.session import DesktopSession, SourceNames, find_sources, is_x11_session
from client.status import SessionReading


class FakeSource:
    def __init__(self, name: str, idle_s: float | None, fullscreen: bool | None, locked: bool | None) -> None:
        self.name = name
        self._readings = (idle_s, fullscreen, locked)
        self.calls: list[str] = []

    def refresh(self) -> None:
        self.calls.append("refresh")

    def idle_s(self) -> float | None:
        return self._readings[0]

    def is_fullscreen(self) -> bool | None:
        return self._readings[1]

    def is_locked(self) -> bool | None:
        return self._readings[2]

    def close(self) -> None:
        self.calls.append("close")


def test_each_reading_comes_from_the_first_that_knows_it() -> None:
    first, second = FakeSource("first", None, False, None), FakeSource("second", 0.0, True, True)
    session = DesktopSession([first, second])
    assert session.read() == SessionReading(0.0, False, True)
    assert session.names() == SourceNames("second", "first", "second")


def test_without_sources_nothing_is_known() -> None:
    session = DesktopSession([])
    assert session.read() == SessionReading()
    assert session.names() == SourceNames()


def test_all_are_asked_and_closed() -> None:
    sources = [FakeSource("a", 1.0, None, None), FakeSource("b", 1.0, None, None)]
    session = DesktopSession(sources)
    session.refresh()
    session.close()
    assert [source.calls for source in sources] == [["refresh", "close"]] * 2


@pytest.mark.parametrize(
    ("environ", "is_x11"),
    [
        ({"DISPLAY": ":0", "XDG_SESSION_TYPE": "x11"}, True),
        ({"DISPLAY": ":0"}, True),
        ({"DISPLAY": ":0", "XDG_SESSION_TYPE": "wayland"}, False),
        ({"DISPLAY": ":0", "WAYLAND_DISPLAY": "wayland-0"}, False),
        ({"XDG_SESSION_TYPE": "x11"}, False),
        ({}, False),
    ],
)
def test_xwayland_is_never_asked(environ: dict[str, str], is_x11: bool) -> None:
    assert is_x11_session(environ) is is_x11


def test_the_mac_has_no_source_yet() -> None:
    assert find_sources("darwin", {}) == []


def test_a_source_that_cannot_be_used_is_left_out() -> None:
    assert find_sources("win32", {}) == []
