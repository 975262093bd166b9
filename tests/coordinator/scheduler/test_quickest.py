"""When nothing serves: a chain whose last layer arrives soonest, over whoever is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.problems import fit_of
from coordinator.scheduler.quickest import Quickest
from tests.fakes.problem_facts import offer, problem

LAYER_BYTES = problem().model.weights[1]
SLOW = LAYER_BYTES / 10
"""Ten seconds a layer."""


def loads(some: Offer, bytes_per_s: float) -> Offer:
    return replace(some, fetch_bytes_per_s=bytes_per_s)


def chains(*offers: Offer) -> list[dict[int, Piece]]:
    """By the offers' numbers, which count from 1; the first to be ready comes first."""
    pool = problem(*offers)
    found = Quickest(pool, fit_of(pool)).chains(range(len(offers)))
    return [{i + 1: piece for i, piece in chain.items()} for chain in found]


def wait_s(changes: dict[int, Piece], *offers: Offer) -> float:
    pool = problem(*offers)
    return Quickest(pool, fit_of(pool)).wait_s({i - 1: piece for i, piece in changes.items()})


def test_what_is_missing_is_shared_in_proportion_to_how_fast_it_comes() -> None:
    pool = offer(1, 12, (0, 12)), loads(offer(2, 12), 2 * SLOW), loads(offer(3, 12), SLOW)
    first = chains(*pool)[0]
    assert first[1] == (0, 12)
    assert len(range(*first[2])) == 8
    assert len(range(*first[3])) == 4


def test_one_that_takes_little_longer_alone_is_among_the_answers() -> None:
    pool = offer(1, 18, (0, 18)), loads(offer(2, 6), 20 * SLOW), loads(offer(3, 6), 20 * SLOW)
    assert any(len(chain) == 2 for chain in chains(*pool))


def test_of_two_that_could_fill_a_hole_the_faster_line_does() -> None:
    pool = offer(1, 12, (0, 12)), loads(offer(2, 12), SLOW), loads(offer(3, 12), 50 * SLOW)
    assert chains(*pool)[0] == {1: (0, 12), 3: (12, 24)}


def test_a_device_that_has_not_downloaded_yet_is_taken_for_one_like_the_others() -> None:
    known = loads(offer(1, 24, (0, 12)), 1e9)
    assert wait_s({2: (12, 24)}, known, offer(2, 12)) == pytest.approx(
        wait_s({2: (12, 24)}, offer(1, 24), offer(2, 12))
    )
    assert wait_s({1: (0, 24), 2: (12, 24)}, known, offer(2, 12)) == pytest.approx(12 * LAYER_BYTES / 1e9)


def test_holders_keep_what_is_on_their_disks() -> None:
    some = offer(1, 12, (0, 8)), offer(2, 12, (10, 20)), offer(3, 8)
    chain = chains(*(loads(one, SLOW) for one in some))[0]
    assert chain[1][0] == 0
    assert chain[1][1] >= 8
    assert chain[2][0] <= 10
    assert chain[2][1] >= 20


def test_what_is_still_being_loaded_is_not_on_the_disk() -> None:
    loading = replace(offer(2, 12, (12, 24), is_loading=True), lacking_bytes=12 * LAYER_BYTES)
    assert wait_s({2: (12, 24)}, offer(1, 12, (0, 12)), loads(loading, SLOW)) == pytest.approx(120.0)
    assert wait_s({2: (12, 24)}, offer(1, 12, (0, 12)), loads(offer(2, 12, (12, 24)), SLOW)) == 0.0


def test_no_answer_where_all_together_are_too_small() -> None:
    assert chains(offer(1, 12, (0, 12)), offer(2, 11)) == []
    assert chains() == []


def test_those_that_come_and_go_are_taken_only_if_others_do_not_suffice() -> None:
    flapping = loads(offer(2, 12, leaves_per_s=2 * FLAPPING_PER_S), 100 * SLOW)
    assert 2 not in chains(offer(1, 12, (0, 12)), flapping, loads(offer(3, 12), SLOW))[0]
    assert 2 in chains(offer(1, 12, (0, 12)), flapping)[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(0, 23), st.integers(1, 50)), min_size=1, max_size=8))
def test_every_chain_is_whole_and_fits(some: list[tuple[int, int, int]]) -> None:
    offers = [
        loads(offer(n, room, stored=(start, min(24, start + room))), speed * SLOW)
        for n, (room, start, speed) in enumerate(some, start=1)
    ]
    for chain in chains(*offers):
        assert [layer for piece in sorted(chain.values()) for layer in range(*piece)] == list(range(24))
        assert all(stop - start <= some[n - 1][0] for n, (start, stop) in chain.items())
