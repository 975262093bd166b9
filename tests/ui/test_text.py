"""Sizes, times and names as people read them."""

from __future__ import annotations

from datetime import datetime

import pytest

from client.ui.text import (
    clean,
    format_bytes,
    format_duration,
    format_limit,
    format_memory,
    format_moment,
    format_point,
)

NOW_S = datetime(2027, 1, 14, 17, 30).timestamp()  # a Thursday


def test_names_are_one_short_line() -> None:
    assert clean("a\nb\tc\x00\x1b[31m", 64) == "a b c [31m"
    assert clean("x" * 100, 64) == "x" * 63 + "…"
    assert clean("safe\u202egnp.exe\u200b", 64) == "safe gnp.exe"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (41_000, "41 kB"), (1_260_000_000, "1.3 GB"), (2 * 10**15, "2,000.0 TB")],
)
def test_sizes_are_decimal(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("size", "text"), [(50 * 10**9, "50 GB"), (1_500_000_000, "1.5 GB"), (10**12, "1 TB")])
def test_a_limit_has_no_needless_zero(size: int, text: str) -> None:
    assert format_limit(size) == text


@pytest.mark.parametrize(("size", "text"), [(24 * 2**30, "24 GB"), (25_757_220_864, "24 GB"), (3 * 2**29, "1.5 GB")])
def test_memory_is_counted_as_it_is_sold(size: int, text: str) -> None:
    assert format_memory(size) == text


@pytest.mark.parametrize(
    ("moment", "text", "within"),
    [
        (datetime(2027, 1, 14, 18, 5), "18:05", "at 18:05"),
        (datetime(2027, 1, 15, 8, 0), "tomorrow 8:00", "tomorrow at 8:00"),
        (datetime(2027, 1, 13, 23, 59), "yesterday 23:59", "yesterday at 23:59"),
        (datetime(2027, 1, 17, 8, 0), "Sun 8:00", "Sun at 8:00"),
        (datetime(2026, 12, 1, 8, 0), "2026-12-01 8:00", "2026-12-01 at 8:00"),
    ],
)
def test_a_moment_is_told_as_people_tell_it(moment: datetime, text: str, within: str) -> None:
    assert format_moment(moment.timestamp(), NOW_S) == text
    assert format_point(moment.timestamp(), NOW_S) == within


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5.0, "1 s"), (0.2, "1 s"), (42.4, "42 s"), (130.0, "2 min"), (3600.0, "1 h"), (7500.0, "2 h 5 min")],
)
def test_a_wait_is_told_roughly(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
