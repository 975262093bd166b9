"""What is kept of measurements between pairs."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.scheduler.pairs import FRESH_S, MAX_PAIRS, OLD_S, OLD_TRUST, Pairs


@pytest.fixture
def pairs() -> Pairs:
    pairs = Pairs()
    pairs.grow(100)
    return pairs


def trusts(pairs: Pairs, row: int) -> dict[int, float]:
    measured = pairs.measured(np.array([row]))
    found = zip(measured.others[0].tolist(), measured.trust[0].tolist(), strict=True)
    return {other: trust for other, trust in found if trust}


def test_a_pair_is_known_at_both_ends(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1)
    assert pairs.rtt_s(1, 2) == pairs.rtt_s(2, 1) == 0.1
    assert pairs.fresh(1) == [2]
    assert pairs.fresh(2) == [1]


def test_the_newest_counts_a_quarter(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1)
    pairs.see(2, 1, 0.2)
    assert pairs.rtt_s(1, 2) == pytest.approx(0.125)


def test_a_node_keeps_a_bounded_number_and_the_latest(pairs: Pairs) -> None:
    for other in range(2, 2 + 2 * MAX_PAIRS):
        pairs.see(1, other, 0.1)
    assert pairs.fresh(1) == list(range(2 + MAX_PAIRS, 2 + 2 * MAX_PAIRS))


def test_who_is_measured_by_everybody_keeps_what_it_has_and_the_others_keep_theirs(pairs: Pairs) -> None:
    for source in range(2, 2 + 2 * MAX_PAIRS):
        pairs.see(source, 1, 0.1 + source / 1000)
    assert pairs.fresh(1) == list(range(2, 2 + MAX_PAIRS))
    assert pairs.rtt_s(1, 1 + 2 * MAX_PAIRS) == pytest.approx(0.1 + (1 + 2 * MAX_PAIRS) / 1000)


def test_what_is_old_gives_way_first(pairs: Pairs) -> None:
    for other in range(2, 2 + MAX_PAIRS):
        pairs.see(1, other, 0.1)
    pairs.pass_time(FRESH_S + 1.0)
    pairs.see(90, 1, 0.1)
    assert pairs.fresh(1) == [90]


def test_old_pairs_count_a_little_for_coordinates_and_then_not_at_all(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1)
    assert trusts(pairs, 1) == {2: 1.0}
    pairs.pass_time(FRESH_S + 1.0)
    assert pairs.rtt_s(1, 2) is None
    assert trusts(pairs, 1) == {2: OLD_TRUST}
    pairs.pass_time(OLD_S + 1.0)
    assert trusts(pairs, 1) == {}


def test_time_does_not_go_back(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1)
    pairs.pass_time(FRESH_S + 1.0)
    pairs.pass_time(0.0)
    assert pairs.rtt_s(1, 2) is None


def test_a_row_with_another_tenant_voids_what_was_measured_to_it(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1, 1e6)
    pairs.see(2, 3, 0.1, 2e6)
    pairs.clear(2)
    assert pairs.rtt_s(1, 2) is None
    assert pairs.bytes_per_s(1, 2) is None
    assert pairs.median_bytes_per_s(1) is None
    assert trusts(pairs, 1) == trusts(pairs, 2) == trusts(pairs, 3) == {}
    pairs.see(1, 2, 0.3)
    assert pairs.rtt_s(1, 2) == 0.3
    assert pairs.bytes_per_s(1, 2) is None


def test_a_rate_that_falls_shows_sooner_than_one_that_rises(pairs: Pairs) -> None:
    pairs.see(1, 2, 0.1, 10e6)
    pairs.see(1, 2, 0.1, 1e6)
    fallen = pairs.bytes_per_s(1, 2)
    pairs.see(2, 1, 0.1, 1e6)
    pairs.see(2, 1, 0.1, 10e6)
    risen = pairs.bytes_per_s(2, 1)
    assert fallen is not None
    assert risen is not None
    assert fallen < 4e6
    assert risen < 2e6


def test_a_landmark_keeps_no_list(pairs: Pairs) -> None:
    assert pairs.see_landmark(1, 0, 0.1) == 0.1
    assert pairs.see_landmark(1, 0, 0.2) == pytest.approx(0.125)
    assert pairs.fresh(0) == []
    assert pairs.rtt_s(0, 1) == pytest.approx(0.125)
