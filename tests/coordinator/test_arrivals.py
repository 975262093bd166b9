"""A session in the words of the scheduler."""

from __future__ import annotations

from coordinator.arrivals import MAX_REST_S, rest_s
from coordinator.sessions import MAX_BREAKS


def test_a_session_whose_chains_break_rests_longer_each_time_before_it_returns() -> None:
    rests_s = [rest_s(num) for num in range(MAX_BREAKS)]
    assert rests_s[:2] == [0.0, 0.0], "one break may be that of a connection"
    assert rests_s[1:] == sorted(set(rests_s))
    assert sum(rests_s) > 1.0, "what breaks for a moment must not use up all tries"
    assert rest_s(1000) == MAX_REST_S
