"""Slower hardware: how slow, and what is no pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.pace import Pace, parse_pace


def test_a_forward_takes_its_part_per_layer_decode_row_and_prompt_row() -> None:
    assert Pace(2.0, 0.5, 0.1).least_s(4, 3, 100) == pytest.approx(4 * (2.0 + 1.5 + 10.0) / 1000)
    assert Pace(2.0, 0.5, 0.1).least_s(0, 3, 100) == 0.0, "a head alone is not slowed"


@pytest.mark.parametrize(
    ("text", "pace"), [("2,0.5,0.1", Pace(2.0, 0.5, 0.1)), ("0,0,0", Pace(0, 0, 0)), ("10,1,0.025", Pace(10, 1, 0.025))]
)
def test_a_pace_is_three_numbers(text: str, pace: Pace) -> None:
    assert parse_pace(text) == pace


@pytest.mark.parametrize(
    "text", ["", "1", "1,2", "1,2,3,4", "a,b,c", "-1,0,0", "1e9,0,0", "nan,0,0", "inf,0,0", "1, 2,3", "1,2,3\n", ",,"]
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no pace"):
        parse_pace(text)


@given(*[st.integers(0, 10**9).map(lambda number: number / 10**4)] * 3)
def test_what_is_written_reads_back(step_ms: float, row_ms: float, prefill_ms: float) -> None:
    pace = Pace(step_ms, row_ms, prefill_ms)
    assert parse_pace(str(pace)) == pace
