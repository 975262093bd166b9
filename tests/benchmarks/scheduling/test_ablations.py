"""Each ablation has its one thing off, and only where it says so; and all of them run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from benchmarks.scheduling import compare
from benchmarks.scheduling.ablations import ABLATIONS, MIXTURES, OURS, WITHOUT, EvenLinks, with_even_links
from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.scenarios import SCENARIOS
from coordinator.scheduler import allocation, repair
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.drafts import Draft
from coordinator.scheduler.forecast import lanes_of
from coordinator.scheduler.plan import Allocator, Offer, Placement, Problem
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.scheduler import our_policy
from coordinator.scheduler.search import Search
from coordinator.scheduler.spares import Spares
from coordinator.scheduler.state import Device, Load
from coordinator.simulate import engine
from protocol.values import LayerRange, NodeId, Variant
from tests.benchmarks.scheduling.pool import (
    KnownLinks,
    chain,
    covers,
    device,
    offer,
    problem,
    request,
    spans_of,
    speed,
    state_of,
)
from tests.coordinator.simulate import pools

every_ablation = pytest.mark.parametrize("name", ABLATIONS)


def ours() -> Policy:
    return our_policy(SchedulerConfig())


def wanted(asked: Problem, num_reserved: int = 10) -> Problem:
    """With more demand than there is to be had, for short requests."""
    return replace(asked, workload=Workload(5, 5, num_reserved, tokens_per_s=1000.0))


def layout(allocator: Allocator, asked: Problem) -> dict[int, tuple[int, int]]:
    return spans_of(asked, allocator.allocate(asked))


def regions_of_lanes(asked: Problem, placements: Sequence[Placement]) -> list[set[str]]:
    """For each lane the first letters of its nodes' names."""
    index = {o.key: i for i, o in enumerate(asked.offers)}
    lanes = lanes_of(asked, {index[p.key]: p.layers for p in placements})
    return [{asked.offers[i].key.node_id[0] for s in lane.stages for i in s.holders} for lane in lanes]


def num_holders(asked: Problem, placements: Sequence[Placement]) -> list[int]:
    """Of each stage of each lane."""
    index = {o.key: i for i, o in enumerate(asked.offers)}
    lanes = lanes_of(asked, {index[p.key]: p.layers for p in placements})
    return [len(stage.holders) for lane in lanes for stage in lane.stages]


# ---------------------------------------------------------------- phase 1


def test_without_search_nothing_is_tried_beside_the_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem([offer(f"a{i}", 7, 1 + i % 3) for i in range(7)])
    budgets: list[int] = []
    run = Search.run

    def noted(self: Search, budget: int) -> list[Draft]:
        budgets.append(budget)
        return run(self, budget)

    monkeypatch.setattr(Search, "run", noted)
    assert covers(layout(WITHOUT["without-search"]().allocator, asked).values(), 12)
    assert budgets == []
    ours().allocator.allocate(asked)
    assert sum(budgets) > 0


def test_without_regions_lanes_cross_borders_that_ours_keep() -> None:
    """Roomiest first, the four would be paired a0 with b0 and a1 with b1."""
    asked = problem([offer("a0", 7.9), offer("b0", 7.8), offer("a1", 6.9), offer("b1", 6.8)])
    assert {"a", "b"} in regions_of_lanes(asked, WITHOUT["without-regions"]().allocator.allocate(asked))
    assert regions_of_lanes(asked, ours().allocator.allocate(asked)) == [{"a"}, {"b"}]


def test_without_regions_a_hop_still_costs_what_it_costs_on_average() -> None:
    asked = problem([offer("a0", 12), offer("a1", 12), offer("b0", 12)])
    links = with_even_links(asked).links
    assert isinstance(links, EvenLinks)
    nodes = [o.key.node_id for o in asked.offers]
    [delay_s] = {links.delay_s(a, b) for a in nodes for b in nodes if a != b}
    assert delay_s == pytest.approx((0.005 + 2 * 0.05) / 3)
    assert links.delay_s(nodes[0], nodes[0]) == 0.0
    assert {links.region(node) for node in nodes} == {0}


def test_without_extra_holders_every_stage_has_one_and_the_rest_stays_free() -> None:
    asked = wanted(problem([offer(f"a{i}", 1.9) for i in range(3)], 2))
    whole = WITHOUT["without-extra-holders"]().allocator.allocate(asked)
    assert num_holders(asked, whole) == [1, 1]
    assert sorted(num_holders(asked, ours().allocator.allocate(asked))) == [1, 2]


def test_without_extra_holders_the_search_does_not_propose_any_either() -> None:
    asked = wanted(problem([*(offer(f"a{i}", 7) for i in range(5)), *(offer(f"b{i}", 5) for i in range(2))]))
    assert set(num_holders(asked, WITHOUT["without-extra-holders"]().allocator.allocate(asked))) == {1}
    assert max(num_holders(asked, ours().allocator.allocate(asked))) > 1


def test_without_extra_holders_a_spare_device_waits_until_it_is_needed() -> None:
    held = [offer("a0", 7, held=(0, 6)), offer("a1", 7, held=(6, 12))]
    allocator = WITHOUT["without-extra-holders"]().allocator
    with_spare = problem([*held, offer("a2", 7)])
    assert list(allocator.adapt(with_spare)) == []
    assert ours().allocator.adapt(with_spare)
    broken = problem([held[0], offer("a2", 7)])
    assert spans_of(broken, allocator.adapt(broken)) == {1: (6, 12)}
    for_two = problem([*held, offer("a2", 7), offer("a3", 7)])
    assert len(allocator.adapt(for_two)) == 2, "they make a replica of their own"


def test_our_own_classes_are_back_when_whole_replicas_have_been_made() -> None:
    WITHOUT["without-extra-holders"]().allocator.adapt(problem([offer("a0", 14), offer("a1", 14)]))
    assert vars(allocation)["Search"] is Search
    assert vars(repair)["Spares"] is Spares


def test_without_kv_room_the_tightest_device_has_room_for_fewer_requests() -> None:
    asked = wanted(problem([offer("a0", 9, 1.0), offer("a1", 9, 5.0)]), num_reserved=100)
    allocator = WITHOUT["without-kv-room"]().allocator
    assert covers(layout(allocator, asked).values(), 12)
    assert least_room(asked, layout(allocator, asked)) < 0.5 * least_room(asked, layout(ours().allocator, asked))


def least_room(asked: Problem, spans: dict[int, tuple[int, int]]) -> float:
    """Requests for which the tightest device has KV room."""
    model, num_tokens = asked.model, asked.workload.num_reserved_tokens
    layers = {i: LayerRange(*span) for i, span in spans.items()}
    rooms = {i: asked.offers[i].memory_bytes - model.weight_bytes(held) for i, held in layers.items()}
    return min(room / model.kv_bytes(layers[i], num_tokens) for i, room in rooms.items())


def test_without_measured_speed_slow_devices_take_as_many_layers_as_fast_ones() -> None:
    roomy = [replace(offer("a0", 100, 1.0), max_layers=9), replace(offer("a1", 100, 5.0), max_layers=9)]
    asked = wanted(problem(roomy))
    blind = layout(WITHOUT["without-measured-speed"]().allocator, asked)
    seeing = layout(ours().allocator, asked)
    assert {stop - start for start, stop in blind.values()} == {6}
    assert seeing[0][1] - seeing[0][0] > seeing[1][1] - seeing[1][0]


def test_without_measured_speed_the_pool_is_as_fast_as_it_is_in_all() -> None:
    seen: list[tuple[Offer, ...]] = []

    class Spy:
        def allocate(self, asked: Problem) -> Sequence[Placement]:
            seen.append(asked.offers)
            return ()

        adapt = allocate

    allocator = replace(WITHOUT["without-measured-speed"]().allocator, allocator=Spy())  # type: ignore[type-var]
    allocator.allocate(problem([offer("a0", 9, 1.0), offer("a1", 9, 3.0)]))
    [offers] = seen
    assert [o.speed.step_s for o in offers] == [pytest.approx(speed(1.5).step_s)] * 2


# ---------------------------------------------------------------- phase 2


def router_choice(policy: Policy, devices: list[Device], links: KnownLinks | None = None) -> list[str]:
    router = policy.make_router(state_of(devices, links=links))
    for each in devices:
        router.changed(each)
    return chain(router)


def busy(each: Device, num_requests: int, rows_per_s: float) -> Device:
    each.num_requests, each.load = num_requests, Load(rows_per_s)
    return each


def test_without_load_a_crowded_device_looks_as_good_as_an_idle_one() -> None:
    def devices() -> list[Device]:
        return [busy(device("a0", (0, 12)), 30, 300.0), device("a1", (0, 12), 1.05)]

    assert router_choice(ours(), devices()) == ["a1"]
    assert router_choice(WITHOUT["without-load"](), devices()) == ["a0"]


def test_without_load_nine_devices_that_change_at_once_are_not_seen_either() -> None:
    devices = [busy(device(f"a{i}", (0, 12), 1 + i / 100), 30 - i, 300.0) for i in range(9)]
    assert router_choice(WITHOUT["without-load"](), devices) == ["a0"]


def test_without_load_kv_room_is_still_kept() -> None:
    devices = [device("a0", (0, 12), num_kv_tokens=150), device("a1", (0, 12), 9.0)]
    router = WITHOUT["without-load"]().make_router(state_of(devices))
    for each in devices:
        router.changed(each)
    assert [chain(router) for _ in range(2)] == [["a0"], ["a1"]]


def test_without_links_chains_that_differ_in_their_links_only_are_equally_good() -> None:
    def devices(far_ms: float) -> list[Device]:
        return [device("a0", (0, 6)), device("a1", (6, 12), 1.0), device("b1", (6, 12), far_ms)]

    assert [router_choice(ours(), devices(ms)) for ms in (0.99, 1.01)] == [["a0", "a1"]] * 2
    blind = [router_choice(WITHOUT["without-links"](), devices(ms)) for ms in (0.99, 1.01)]
    assert blind == [["a0", "b1"], ["a0", "a1"]]


def test_without_links_a_token_takes_what_its_stages_take() -> None:
    def tpot_s(policy: Policy) -> float:
        devices = [device("a0", (0, 6)), device("b1", (6, 12))]
        router = policy.make_router(state_of(devices))
        for each in devices:
            router.changed(each)
        route = router.route(request(), Variant.BFLOAT16, 0.0)
        assert route is not None
        return route.tpot_s

    assert tpot_s(WITHOUT["without-links"]()) == pytest.approx(0.012)
    assert tpot_s(ours()) == pytest.approx(0.012 + 2 * 0.05, rel=1e-3)


def choices(policy: Policy, slowness: Sequence[float]) -> list[bool]:
    """Whether a busy device is taken rather than an idle one that is so many times as slow."""
    return [
        router_choice(policy, [busy(device("a0", (0, 12)), 8, 80.0), device("a1", (0, 12), ms)]) == ["a0"]
        for ms in slowness
    ]


def test_without_own_cost_a_request_goes_where_it_is_quickest_itself() -> None:
    slowness = [1.0 + i / 10 for i in range(1, 60)]
    own, all_of_us = choices(WITHOUT["without-own-cost"](), slowness), choices(ours(), slowness)
    assert sum(own) > sum(all_of_us) > 0
    assert all(selfish or not social for selfish, social in zip(own, all_of_us, strict=True))


def test_without_replanning_is_ours_but_for_that() -> None:
    without = WITHOUT["without-replanning"]()
    assert not without.replans
    assert type(without.allocator) is type(ours().allocator)
    assert all(make().replans for name, make in WITHOUT.items() if name != "without-replanning")


# ---------------------------------------------------------------- all of them


def test_a_mixture_has_one_phase_of_ours_and_one_of_another_system() -> None:
    for name, make in MIXTURES.items():
        allocator_is_ours = isinstance(make().allocator, allocation.LaneAllocator)
        assert allocator_is_ours is name.startswith("ours+"), name
        assert make().replans is allocator_is_ours, name


@every_ablation
def test_its_policy_has_its_name_and_no_other_has_it(name: str) -> None:
    assert ABLATIONS[name]().name == name
    assert name not in {OURS, *POLICIES}


@every_ablation
def test_a_small_pool_answers_everybody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = pools.scenario(5, 1.0, duration_s=40.0, warm_up_s=5.0)
    two_kinds = msgspec.structs.replace(small.pool, mix={"rtx4090-24g": 3.0, "rtx3060-12g": 2.0}, num_regions=2)
    monkeypatch.setitem(SCENARIOS, "small", msgspec.structs.replace(small, pool=two_kinds))
    run = compare.simulate(("small", name, 0, 1.0))
    assert run.num_finished == run.num_arrived > 10
    assert run.goodput > 0.0


@pytest.mark.parametrize("name", WITHOUT)
def test_every_invariant_holds_after_nodes_have_left(name: str) -> None:
    small = pools.scenario(6, 0.5, duration_s=40.0, warm_up_s=5.0)
    scheduler = engine.new_scheduler(small, WITHOUT[name]())
    simulation = engine.Simulation(small, scheduler, name, 1)
    simulation.found()
    scheduler.validate()
    for node in simulation.fleet.nodes[:3]:
        simulation.timeline.tell(ev.NodeLeft(NodeId(node.node_id)))
        scheduler.validate()
    assert scheduler.is_ready(next(iter(scheduler.state.models)))
