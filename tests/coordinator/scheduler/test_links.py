"""Links: what was measured, what follows for what was not, regions, and whom to measure next.

The synthetic worlds have eight cloud regions with round trips as their operators publish them (rounded), access lines
of gamma-distributed delay, and noise on every measurement. Seeds are in the tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler import links as links_module
from coordinator.scheduler.links import (
    DEFAULT_BYTES_PER_S,
    DEFAULT_RTT_S,
    ENOUGH_PAIRS,
    FEW_NODES,
    UNKNOWN_REGION,
    Floats,
    Ints,
    LinkMap,
    LinkSeen,
)
from coordinator.scheduler.pairs import FRESH_S
from protocol.values import NodeId

BETWEEN_REGIONS_S: Floats = 1e-3 * np.array(
    [  # us-east, us-west, sa-east, eu-west, ap-south, ap-southeast (SG), ap-northeast (JP), ap-southeast (AU)
        [4, 65, 115, 80, 195, 220, 150, 200],
        [65, 4, 175, 135, 225, 170, 105, 140],
        [115, 175, 4, 185, 300, 330, 260, 310],
        [80, 135, 185, 4, 120, 165, 210, 260],
        [195, 225, 300, 120, 4, 60, 125, 150],
        [220, 170, 330, 165, 60, 4, 70, 95],
        [150, 105, 260, 210, 125, 70, 4, 110],
        [200, 140, 310, 260, 150, 95, 110, 4],
    ]
)
A, B, C, D = (NodeId(letter * 32) for letter in "abcd")


class World:
    """Nodes in eight regions that measure whom they are told to. Times in seconds."""

    def __init__(self, num_nodes: int, seed: int, noise: float) -> None:
        self.dice = np.random.default_rng(seed)
        self.noise = noise
        self.region_of: Ints = self.dice.integers(0, 8, num_nodes)
        self.access_s: Floats = self.dice.gamma(2.0, 4e-3, num_nodes)
        self.ids = [NodeId(f"{number:032x}") for number in range(num_nodes)]
        self.index = {node_id: number for number, node_id in enumerate(self.ids)}
        self.links = LinkMap()
        self.now_s = 0.0

    @property
    def rows(self) -> Ints:
        return np.array([self.links.row(node_id) for node_id in self.ids])

    def true_rtts_s(self) -> Floats:
        core = BETWEEN_REGIONS_S[np.ix_(self.region_of, self.region_of)]
        rtts: Floats = core + self.access_s[:, None] + self.access_s
        np.fill_diagonal(rtts, 0.0)
        return rtts

    def measured_s(self, source: NodeId, target: NodeId) -> float:
        a, b = self.index[source], self.index[target]
        core = BETWEEN_REGIONS_S[self.region_of[a], self.region_of[b]]
        return float((core + self.access_s[a] + self.access_s[b]) * math.exp(self.dice.normal(0.0, self.noise)))

    def measure_pool(self) -> None:
        """The coordinator is in us-east."""
        rtts = BETWEEN_REGIONS_S[self.region_of, 0] + self.access_s
        self.links.see((), [(node_id, float(rtt)) for node_id, rtt in zip(self.ids, rtts, strict=True)], self.now_s)

    def measure(self, node_id: NodeId) -> None:
        targets = self.links.probes(node_id, self.ids)
        seen = [LinkSeen(node_id, target, self.measured_s(node_id, target)) for target in targets]
        self.links.see(seen, (), self.now_s)

    def measure_all(self, num_rounds: int = 1) -> None:
        """In each round every node is told twice, in any order: landmarks, then neighbours."""
        for _ in range(num_rounds):
            for number in [*self.dice.permutation(len(self.ids)), *self.dice.permutation(len(self.ids))]:
                self.measure(self.ids[number])
            self.now_s += FRESH_S + 1.0

    def median_error(self) -> float:
        above = np.triu_indices(len(self.ids), 1)
        true = self.true_rtts_s()[above]
        return float(np.median(np.abs(2 * self.links.delays_s(self.rows, self.rows)[above] - true) / true))

    def agreement(self) -> tuple[float, float]:
        """Of pairs in one true region, the share found in one; of pairs in two, the share found in two."""
        above = np.triu_indices(len(self.ids), 1)
        found = self.links.regions(self.rows)
        true_same = (self.region_of[:, None] == self.region_of)[above]
        found_same = (found[:, None] == found)[above]
        return float(found_same[true_same].mean()), float((~found_same)[~true_same].mean())


def seen(a: NodeId, b: NodeId, rtt_s: float, bytes_per_s: float | None = None) -> LinkSeen:
    return LinkSeen(a, b, rtt_s, bytes_per_s)


# ---------------------------------------------------------------- pairs


def test_nodes_of_which_nothing_is_known_have_defaults() -> None:
    links = LinkMap()
    assert links.delay_s(A, B) == DEFAULT_RTT_S / 2
    assert links.bytes_per_s(A, B) == DEFAULT_BYTES_PER_S
    assert links.hop_s(A, B, 12.5e6) == pytest.approx(DEFAULT_RTT_S / 2 + 1.0)
    assert links.region(A) == UNKNOWN_REGION
    rows = np.array([links.row(A), links.row(B)])
    assert links.delays_s(rows, rows).tolist() == [[0.0, DEFAULT_RTT_S / 2], [DEFAULT_RTT_S / 2, 0.0]]
    assert links.uploads(rows).tolist() == [DEFAULT_BYTES_PER_S] * 2
    assert links.regions(rows).tolist() == [UNKNOWN_REGION] * 2


def test_questions_about_strangers_leave_nothing_behind() -> None:
    links = LinkMap()
    links.hop_s(A, B, 10.0)
    links.region(A)
    links.forget(A)
    assert len(links) == 0


def test_a_node_is_no_distance_from_itself() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.08, 1e6), seen(A, A, 0.5)])
    assert (links.delay_s(A, A), links.bytes_per_s(A, A), links.hop_s(A, A, 1e9)) == (0.0, math.inf, 0.0)


def test_a_measured_pair_has_half_its_round_trip_in_both_directions() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.08), seen(A, C, 0.2)])
    assert links.delay_s(A, B) == links.delay_s(B, A) == pytest.approx(0.04)
    assert links.delay_s(C, A) == pytest.approx(0.1)


def test_bytes_have_a_direction() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.08, 1e6), seen(B, A, 0.08, 5e6)])
    assert links.bytes_per_s(A, B) == pytest.approx(1e6)
    assert links.bytes_per_s(B, A) == pytest.approx(5e6)
    assert links.hop_s(A, B, 2e6) == pytest.approx(0.04 + 2.0)


def test_an_unmeasured_pair_has_the_median_of_the_senders_links_and_a_measured_one_no_more_than_that() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.08, 1e6), seen(A, C, 0.08, 2e6), seen(A, D, 0.08, 90e6)])
    assert links.bytes_per_s(A, NodeId("e" * 32)) == pytest.approx(2e6)
    assert links.bytes_per_s(A, B) == pytest.approx(1e6)
    assert links.bytes_per_s(A, D) == pytest.approx(2e6)
    assert links.uploads(np.array([links.row(A), links.row(B)])) == pytest.approx([2e6, DEFAULT_BYTES_PER_S])


def test_a_fast_uplink_is_not_cut_to_the_default() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.01, 125e6)])
    assert links.bytes_per_s(A, B) == pytest.approx(125e6)


def test_one_odd_measurement_is_smoothed_and_a_degraded_link_shows_at_the_third() -> None:
    links = LinkMap()
    for _ in range(5):
        links.see([seen(A, B, 0.02, 10e6)])
    links.see([seen(A, B, 0.2, 1e6)])
    assert links.delay_s(A, B) < 0.05
    for _ in range(2):
        links.see([seen(B, A, 0.2), seen(A, B, 0.2, 1e6)])
    assert links.delay_s(A, B) > 0.05
    assert links.bytes_per_s(A, B) < 2.5e6


def test_a_measurement_without_a_rate_leaves_the_measured_rate() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.02, 3e6)])
    links.see([seen(A, B, 0.02), seen(B, A, 0.02)])
    assert links.bytes_per_s(A, B) == pytest.approx(3e6)


def test_an_old_measurement_gives_way_to_coordinates() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.02), seen(A, C, 0.3), seen(B, C, 0.3)], now_s=100.0)
    by_coordinates = links.delays_s(np.array([links.row(A)]), np.array([links.row(B)]))[0, 0]
    links.see([seen(C, D, 0.1)], now_s=100.0 + FRESH_S)
    assert links.delay_s(A, B) == pytest.approx(0.01)
    links.see([seen(C, D, 0.1)], now_s=101.0 + FRESH_S)
    assert links.delay_s(A, B) != pytest.approx(0.01)
    assert links.delay_s(A, B) == pytest.approx(by_coordinates, abs=0.02)


def test_after_expiry_the_first_measurement_counts_alone() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.02)], now_s=0.0)
    links.see([seen(A, B, 0.3)], now_s=FRESH_S + 1.0)
    assert links.delay_s(A, B) == pytest.approx(0.15)


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, 1e9, math.inf, math.nan])
def test_absurd_round_trips_do_no_harm(rtt_s: float) -> None:
    links = LinkMap()
    links.see([seen(A, B, rtt_s, 0.0), seen(A, C, 0.05)], [(A, rtt_s), (C, 0.05)])
    rows = np.array([links.row(node) for node in (A, B, C)])
    delays = links.delays_s(rows, rows)
    assert np.isfinite(delays).all()
    assert (delays >= 0.0).all()
    assert 0.0 < links.hop_s(A, B, 100.0) < math.inf


# ---------------------------------------------------------------- coordinates


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_eight_probes_a_node_with_noise_of_30_percent_estimate_all_pairs_within_20_percent(
    seed: int, pool: bool
) -> None:
    world = World(80, seed, noise=0.3)
    if pool:
        world.measure_pool()
    world.measure_all()
    assert world.median_error() < 0.2


def test_further_rounds_make_it_better() -> None:
    world = World(80, 4, noise=0.3)
    world.measure_all(num_rounds=4)
    assert world.median_error() < 0.12


def test_with_the_coordinators_round_trips_alone_two_nodes_are_as_far_apart_as_the_farther_one_is_from_it() -> None:
    links = LinkMap()
    links.see((), [(A, 0.01), (B, 0.02), (C, 0.15), (D, 0.15)])
    assert links.delay_s(A, B) == pytest.approx(0.01)
    assert links.delay_s(A, C) == pytest.approx(0.075)
    assert links.delay_s(C, D) == pytest.approx(0.075)
    assert links.region(A) == links.region(B) != links.region(C) != UNKNOWN_REGION


def test_a_node_that_comes_back_is_where_it_was() -> None:
    world = World(60, 5, noise=0.05)
    world.measure_all(num_rounds=2)
    node, others = world.ids[7], world.rows[20:40]
    before = world.links.delays_s(np.array([world.links.row(node)]), others)
    region = world.links.region(node)
    world.links.forget(node)
    assert world.links.region(node) == UNKNOWN_REGION
    after = world.links.delays_s(np.array([world.links.row(node)]), others)
    assert after == pytest.approx(before)
    assert world.links.region(node) == region


def test_its_pairs_do_not_come_back_with_it() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.02, 1e6), seen(A, C, 0.3), seen(B, C, 0.3)])
    links.forget(B)
    assert links.delay_s(A, B) == DEFAULT_RTT_S / 2
    links.row(B)
    assert links.bytes_per_s(A, B) == pytest.approx(1e6)  # A's upload: of A, not of the pair
    assert links.bytes_per_s(B, A) == DEFAULT_BYTES_PER_S


def test_a_forgotten_nodes_row_is_anothers_who_knows_nothing_of_it() -> None:
    links = LinkMap()
    links.see([seen(A, B, 0.02, 1e6), seen(B, A, 0.02, 2e6)])
    row = links.row(B)
    links.forget(B)
    assert links.row(C) == row
    assert links.delay_s(A, C) == DEFAULT_RTT_S / 2
    assert links.bytes_per_s(C, A) == DEFAULT_BYTES_PER_S
    assert links.region(C) == UNKNOWN_REGION


def test_the_same_calls_have_the_same_answers() -> None:
    worlds = [World(40, 6, noise=0.2) for _ in range(2)]
    for world in worlds:
        world.measure_all()
    first, second = (world.links.delays_s(world.rows, world.rows) for world in worlds)
    assert (first == second).all()


# ---------------------------------------------------------------- regions


@pytest.mark.parametrize("seed", [1, 3])
def test_found_regions_are_the_true_ones(seed: int) -> None:
    world = World(80, seed, noise=0.05)
    world.measure_pool()
    world.measure_all(num_rounds=4)
    together, apart = world.agreement()
    assert together > 0.98
    assert apart > 0.999


def test_with_noise_of_30_percent_most_nodes_still_find_their_region_and_no_two_regions_mix() -> None:
    world = World(80, 7, noise=0.3)
    world.measure_pool()
    world.measure_all(num_rounds=5)
    together, apart = world.agreement()
    assert together > 0.85
    assert apart > 0.98


def test_regions_keep_their_numbers_while_measuring_goes_on() -> None:
    world = World(80, 8, noise=0.05)
    world.measure_all(num_rounds=4)
    before = world.links.regions(world.rows)
    world.measure_all(num_rounds=2)
    assert (world.links.regions(world.rows) == before).mean() > 0.97


@pytest.mark.parametrize("seed", [9, 12])
def test_a_node_that_moves_changes_its_region(seed: int) -> None:
    world = World(60, seed, noise=0.05)
    world.measure_all(num_rounds=3)
    mover = int(np.flatnonzero(world.region_of == 0)[0])
    host = world.ids[int(np.flatnonzero(world.region_of == 7)[0])]
    old = world.links.region(world.ids[mover])
    world.region_of[mover] = 7
    world.measure_all(num_rounds=3)
    assert old != world.links.region(world.ids[mover]) == world.links.region(host)


# ---------------------------------------------------------------- probes


def test_probes_are_few_and_never_the_node_itself_and_end_when_it_knows_enough() -> None:
    world = World(50, 10, noise=0.1)
    node = world.ids[3]
    asked: list[NodeId] = []
    while probes := world.links.probes(node, world.ids):
        assert len(probes) <= ENOUGH_PAIRS
        assert node not in probes
        assert not set(probes) & set(asked)
        asked += probes
        world.links.see([seen(node, target, world.measured_s(node, target)) for target in probes])
    assert len(asked) == ENOUGH_PAIRS


def test_a_node_measures_again_when_what_it_knows_is_old() -> None:
    world = World(30, 11, noise=0.1)
    world.measure_all()
    world.links.see([], now_s=FRESH_S - 1.0)
    assert not world.links.probes(world.ids[0], world.ids)
    world.links.see([], now_s=FRESH_S + 1.0)
    assert world.links.probes(world.ids[0], world.ids)


def test_a_lonely_node_has_nobody_to_measure_and_a_small_pool_measures_all() -> None:
    links = LinkMap()
    assert links.probes(A, [A]) == ()
    assert set(links.probes(A, [A, B, C])) == {B, C}
    links.see([seen(A, B, 0.01), seen(A, C, 0.02)])
    assert links.probes(A, [A, B, C]) == ()


def test_a_newcomers_first_probes_are_in_as_many_regions_as_possible() -> None:
    world = World(80, 12, noise=0.03)
    world.measure_all(num_rounds=3)
    probes = world.links.probes(A, world.ids)
    assert len({world.links.region(node) for node in probes}) == len(probes) > 1


def test_in_a_large_pool_only_connected_nodes_are_measured_the_nearest_among_them() -> None:
    world = World(2 * FEW_NODES, 16, noise=0.03)
    world.measure_all(num_rounds=2)
    connected = dict.fromkeys(world.ids[: 2 * FEW_NODES - 50]).keys()
    world.links.see([seen(A, world.ids[0], 0.01)])
    asked: set[NodeId] = set()
    while probes := world.links.probes(A, connected):
        assert set(probes) <= set(connected)
        assert not set(probes) & asked
        asked |= set(probes)
        world.links.see([seen(A, other, 0.01 if other == world.ids[0] else 0.02) for other in probes])
    assert len(asked - {world.ids[0]}) == ENOUGH_PAIRS - 1


@pytest.mark.parametrize("seed", [13, 14, 15])
def test_a_newcomer_meets_its_region_within_its_first_eight_probes(seed: int) -> None:
    world = World(81, seed, noise=0.03)
    newcomer, world.ids = world.ids[-1], world.ids[:-1]
    world.measure_all(num_rounds=3)
    world.measure(newcomer)
    world.measure(newcomer)
    home = world.region_of[world.index[newcomer]]
    hosts = {world.links.region(node) for node in world.ids if world.region_of[world.index[node]] == home}
    assert world.links.region(newcomer) in hosts


# ---------------------------------------------------------------- at large


def test_ten_thousand_nodes_are_feasible() -> None:
    world = World(10_000, 14, noise=0.1)
    world.measure_pool()
    for node in world.ids[:50]:
        world.measure(node)
    rows = world.rows
    assert len(world.links) == len(set(rows.tolist())) == 10_000
    assert len(set(world.links.regions(rows).tolist())) < 200
    assert world.links.delays_s(rows[:32], rows[-32:]).shape == (32, 32)


def test_names_that_only_measurements_mention_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "MAX_GUESTS", 10)
    monkeypatch.setattr(links_module, "MAX_DEPARTED", 20)
    links = LinkMap()
    links.row(A)
    for number in range(200):
        links.see([seen(A, NodeId(f"{number:032x}"), 0.05)])
    assert len(links) <= 11
    assert links.delay_s(A, NodeId(f"{199:032x}")) == pytest.approx(0.025)


nodes = st.integers(0, 30).map(lambda number: NodeId(f"{number:032x}"))
measurements = st.tuples(nodes, nodes, st.floats(1e-4, 1.0), st.none() | st.floats(1e3, 1e9))
steps = st.one_of(
    st.tuples(st.just("see"), st.lists(measurements, max_size=6)),
    st.tuples(st.just("pool"), st.tuples(nodes, st.floats(1e-4, 1.0))),
    st.tuples(st.just("forget"), nodes),
    st.tuples(st.just("row"), nodes),
    st.tuples(st.just("wait"), st.floats(0.0, 2000.0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_whatever_happens_rows_are_few_and_vectors_agree_with_scalars(history: list[tuple[str, object]]) -> None:
    links, now_s = LinkMap(), 0.0
    known: dict[NodeId, int] = {}
    for kind, what in history:
        if kind == "see":
            links.see([LinkSeen(*each) for each in what], (), now_s)  # type: ignore[attr-defined]
        elif kind == "pool":
            links.see((), [what], now_s)  # type: ignore[list-item]
        elif kind == "forget":
            links.forget(what)  # type: ignore[arg-type]
            known.pop(what, None)  # type: ignore[call-overload]
        elif kind == "row":
            row = links.row(what)  # type: ignore[arg-type]
            assert known.setdefault(what, row) == row  # type: ignore[call-overload]
        else:
            now_s += what  # type: ignore[operator]
    links.see((), (), now_s + 2 * FRESH_S)  # no exact pair counts any more
    names = [NodeId(f"{number:032x}") for number in range(31)]
    rows = np.array([links.row(name) for name in names])
    assert len(set(rows.tolist())) == len(names)
    assert rows.max() <= len(names)
    scalars = [[links.delay_s(a, b) for b in names] for a in names]
    assert links.delays_s(rows, rows) == pytest.approx(np.array(scalars), abs=1e-6)
    assert links.uploads(rows) == pytest.approx([links.bytes_per_s(name, NodeId("f" * 32)) for name in names])
    assert links.regions(rows).tolist() == [links.region(name) for name in names]
