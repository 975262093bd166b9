"""Waits that double, up to a limit."""

from __future__ import annotations

import pytest

from protocol.backoff import doubled_s


@pytest.mark.parametrize(("num_doublings", "delay_s"), [(0, 0.5), (1, 1.0), (3, 4.0), (6, 30.0)])
def test_a_wait_doubles_up_to_its_limit(num_doublings: int, delay_s: float) -> None:
    assert doubled_s(0.5, num_doublings, 30.0) == delay_s


def test_however_many_failures_there_were_there_is_an_answer() -> None:
    assert doubled_s(0.5, 10**9, 30.0) == 30.0
