from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling.baselines import graph as graphs
from benchmarks.scheduling.baselines.routers import (
    FewestOutstandingRouter,
    ParallaxRouter,
    PetalsRouter,
    RandomRouter,
    RoundRobinRouter,
)
from coordinator.scheduler.links import Floats
from coordinator.scheduler.state import Device, Signal
from protocol.values import Variant
from tests.benchmarks.scheduling.pool import KnownLinks, chain, device, request, state_of


def two_pipelines(slow_ms: float = 1.0) -> list[Device]:
    return [
        device("a0", (0, 6)),
        device("a1", (6, 12)),
        device("b0", (0, 5), slow_ms),
        device("b1", (5, 12), slow_ms),
    ]


def end(router: object, devices: list[Device]) -> None:
    for member in devices:
        member.num_requests -= 1
        router.changed(member)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- Petals

one_place = functools.partial(PetalsRouter, spread_clients=False)
"""As if all clients were in the same place."""


def test_petals_clients_in_different_places_take_different_chains() -> None:
    router = PetalsRouter(state_of(two_pipelines(1.2)))
    counts = Counter(chain(router)[0] for _ in range(40))
    assert min(counts["a0"], counts["b0"]) >= 10, "100 ms there and back outweigh 2.4 ms"


def test_petals_takes_the_quickest_chain_with_its_links_every_time() -> None:
    router = one_place(state_of(two_pipelines(1.2)))
    assert [chain(router) for _ in range(5)] == [["a0", "a1"]] * 5


def test_petals_counts_the_delay_between_servers() -> None:
    devices = [device("a0", (0, 6)), device("b0", (0, 6), 1.05), device("b1", (6, 12))]
    assert chain(one_place(state_of(devices))) == ["b0", "b1"]


def test_petals_overhead_makes_hops_count_for_more() -> None:
    devices = [device("a0", (0, 6)), device("a1", (6, 12)), device("a2", (0, 12), 1.5)]
    assert chain(one_place(state_of(devices))) == ["a0", "a1"], "12 ms and a hop of 5 against 18 ms"
    assert chain(one_place(state_of(devices), overhead_s=0.018)) == ["a2"]


# ---------------------------------------------------------------- Parallax


def test_parallax_leaves_a_chosen_chain_for_another() -> None:
    router = ParallaxRouter(state_of(two_pipelines(1.1)))
    counts = Counter(chain(router)[0] for _ in range(20))
    assert counts["a0"] >= counts["b0"] >= 8


def test_parallax_stitches_slices_of_different_replicas() -> None:
    devices = [device("a0", (0, 6)), device("a1", (6, 12), 5.0), device("a2", (0, 6), 5.0), device("a3", (6, 12))]
    assert chain(ParallaxRouter(state_of(devices))) == ["a0", "a3"]


def test_parallax_comes_back_when_requests_have_finished() -> None:
    devices = two_pipelines(1.1)
    router = ParallaxRouter(state_of(devices))
    assert [chain(router), chain(router)] == [["a0", "a1"], ["b0", "b1"]]
    end(router, devices)
    assert chain(router) == ["a0", "a1"]


# ---------------------------------------------------------------- fixed pipelines


def test_round_robin_alternates() -> None:
    router = RoundRobinRouter(state_of(two_pipelines(9.0)))
    assert [chain(router)[0] for _ in range(4)] == ["a0", "b0", "a0", "b0"]


def test_round_robin_leaves_out_a_pipeline_without_room() -> None:
    devices = two_pipelines()
    router = RoundRobinRouter(state_of(devices))
    devices[3].num_reserved_tokens = devices[3].num_kv_tokens
    router.changed(devices[3])
    assert [chain(router)[0] for _ in range(3)] == ["a0"] * 3


def test_a_fixed_pipeline_never_lends_its_devices() -> None:
    devices = [*two_pipelines(), device("a2", (6, 12))]
    router = RoundRobinRouter(state_of(devices))
    chains = {tuple(chain(router)) for _ in range(10)}
    assert len(chains) == 2
    assert len({name for one in chains for name in one}) == 4


def test_survivors_of_a_broken_pipeline_form_a_new_one_with_whoever_is_spare() -> None:
    devices = [*two_pipelines(), device("a2", (6, 12), 9.0)]
    router = RoundRobinRouter(state_of(devices))
    assert chain(router) == ["a0", "a1"]
    devices[1].move(Signal.FAIL)
    router.changed(devices[1])
    assert {tuple(chain(router)) for _ in range(4)} == {("a0", "a2"), ("b0", "b1")}


def test_the_group_with_the_fewest_outstanding_requests_is_next() -> None:
    devices = two_pipelines(9.0)
    router = FewestOutstandingRouter(state_of(devices))
    assert [chain(router)[0] for _ in range(4)] == ["a0", "b0", "a0", "b0"]
    end(router, devices[2:])
    assert chain(router)[0] == "b0"


# ---------------------------------------------------------------- by lot


def test_chance_uses_everybody_and_enters_no_dead_end() -> None:
    devices = [*two_pipelines(), device("a2", (0, 7))]
    router = RandomRouter(state_of(devices))
    counts = Counter(chain(router)[0] for _ in range(60))
    assert set(counts) == {"a0", "b0"}
    assert min(counts.values()) > 10


# ---------------------------------------------------------------- the graph


def cheapest(devices: list[Device], links: KnownLinks) -> float:
    """By trying every chain."""
    best = float("inf")

    def extend(at: int, last: Device | None, cost_s: float) -> None:
        nonlocal best
        if at == 12:
            best = min(best, cost_s)
        for d in devices:
            if d.layers is not None and d.layers.start == at:
                hop_s = links.delay_s(last.key.node_id, d.key.node_id) if last else 0.0
                extend(d.layers.stop, d, cost_s + hop_s + len(d.layers) * d.layer_time_s("m"))

    extend(0, None, 0.0)
    return best


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.floats(0.1, 20)), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_the_shortest_chain_is_that_of_trying_all(slices: list[tuple[int, int, float]]) -> None:
    devices = [
        device(f"{'ab'[i % 2]}{i}", (start * 3, min(12, (start + length) * 3)), ms)
        for i, (start, length, ms) in enumerate(slices)
    ]
    links = KnownLinks()
    router = one_place(state_of(devices, links=links))
    chosen = router.route(request(), Variant.BFLOAT16, 0.0)
    best = cheapest(devices, links)
    assert (chosen is None) == (best == float("inf"))
    if chosen is not None:
        hops = zip(chosen.devices, chosen.devices[1:], strict=False)
        cost_s = sum(links.delay_s(a.key.node_id, b.key.node_id) for a, b in hops)
        cost_s += sum(len(d.layers or ()) * d.layer_time_s("m") for d in chosen.devices)
        assert cost_s == pytest.approx(best)


def test_many_links_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [device(f"{'ab'[i % 2]}{i}", (0, 6) if i < 3 else (6, 12)) for i in range(6)]
    exact = chain(one_place(state_of(devices)))
    monkeypatch.setattr(graphs, "MAX_EXACT_PAIRS", 0)
    asked = []

    class Watched(KnownLinks):
        def delays_s(self, sources: np.ndarray, targets: np.ndarray) -> Floats:
            asked.append((len(sources), len(targets)))
            return super().delays_s(sources, targets)

    fresh = [device(d.key.node_id, (d.layers.start, d.layers.stop)) for d in devices if d.layers]
    router = one_place(state_of(fresh, links=Watched()))
    assert chain(router) == exact
    assert asked == [(3, 3)]


def test_delays_are_looked_up_anew_when_they_are_old() -> None:
    delays = {("a0", "a1"): 0.001, ("a0", "a2"): 0.01}
    links = KnownLinks(delays)
    router = one_place(state_of([device("a0", (0, 6)), device("a1", (6, 12)), device("a2", (6, 12))], links=links))
    assert chain(router)[-1] == "a1"
    links.delays["a0", "a1"] = 0.2
    assert chain(router, now_s=graphs.LINK_AGE_S / 2)[-1] == "a1"
    assert chain(router, now_s=graphs.LINK_AGE_S)[-1] == "a2"
