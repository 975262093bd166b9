"""How many second chains there may be."""

from __future__ import annotations

import pytest

from coordinator.scheduler.hedged import HedgedRoom
from coordinator.scheduler.policy import Route
from coordinator.scheduler.state import Running, State
from tests.fakes import pool_facts as facts

CHAIN = Running(facts.DIGEST, (facts.key(1),), 16, 0.0)


def room(num_running: int, num_hedges: int) -> tuple[HedgedRoom, list[int]]:
    counted: list[int] = []
    state = State(running={facts.session_id(number): CHAIN for number in range(num_running)})
    hedged = HedgedRoom(state, lambda running, sign: counted.append(sign * running.num_tokens))
    for number in range(num_hedges):
        hedged.start(facts.session_id(number), CHAIN)
    return hedged, counted


@pytest.mark.parametrize(
    ("num_running", "num_hedges", "is_spent"),
    [(1, 0, False), (1, 1, True), (19, 1, True), (20, 1, False), (20, 2, True), (100, 9, False), (100, 10, True)],
)
def test_a_tenth_of_what_runs_or_one(num_running: int, num_hedges: int, is_spent: bool) -> None:
    assert room(num_running, num_hedges)[0].is_spent is is_spent


def test_both_chains_are_counted_while_there_are_two() -> None:
    hedged, counted = room(1, 1)
    assert hedged.take(facts.session_id(0)) is CHAIN
    assert hedged.take(facts.session_id(0)) is None
    assert counted == [16, -16]


def test_a_second_chain_ends_with_any_of_its_devices() -> None:
    hedged, counted = room(2, 1)
    hedged.lost([facts.key(2)])
    assert counted == [16]
    hedged.lost([facts.key(1)])
    assert counted == [16, -16]


def test_what_is_expected_to_be_slower_than_wanted_is_not_worth_it() -> None:
    hedged, _ = room(1, 0)
    route = Route((), tpot_s=0.1, ttft_s=2.0)
    assert hedged.is_worth_it(route, 2.0, 0.1)
    assert not hedged.is_worth_it(route, 1.9, 0.1)
    assert not hedged.is_worth_it(route, 2.0, 0.09)
    assert not hedged.is_worth_it(None, 2.0, 0.1)
