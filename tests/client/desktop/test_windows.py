"""Windows' readings, with its calls replaced."""

from __future__ import annotations

import sys

import pytest

from client.desktop.source import SourceError
from client.desktop.windows import WindowsSource, elapsed_s, windows_source


def source(last_input_ms: int | None = 1000, now_ms: int = 4500, state: int | None = 5) -> WindowsSource:
    return WindowsSource(lambda: last_input_ms, lambda: now_ms, lambda: state)


def test_idle_is_the_time_since_the_last_input() -> None:
    assert source().idle_s() == 3.5
    assert source(last_input_ms=None).idle_s() is None


def test_the_clock_may_start_again() -> None:
    assert elapsed_s(2**32 - 1000, 500) == 1.5


@pytest.mark.parametrize(
    ("state", "is_fullscreen"), [(1, False), (2, False), (3, True), (4, True), (5, False), (7, False), (None, None)]
)
def test_only_games_and_presentations_fill_the_screen(state: int | None, is_fullscreen: bool | None) -> None:
    assert source(state=state).is_fullscreen() is is_fullscreen


def test_what_it_does_not_know_it_does_not_say() -> None:
    found = source()
    found.refresh()
    assert found.is_locked() is None
    found.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there it is")
def test_elsewhere_there_is_no_such_source() -> None:
    with pytest.raises(SourceError, match="not Windows"):
        windows_source()
