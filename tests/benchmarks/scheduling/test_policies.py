"""What holds for every baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling.baselines import FLOOR, OWN_RULES, POLICIES, combine, with_rule
from benchmarks.scheduling.baselines.capacity import Capacity
from benchmarks.scheduling.baselines.helix import HelixAllocator
from benchmarks.scheduling.baselines.helix_milp import Effort
from coordinator.scheduler.plan import Allocator, Problem
from coordinator.scheduler.state import Device, DeviceState, Signal
from protocol.values import LayerRange, Variant
from tests.benchmarks.scheduling.pool import chain, covers, device, offer, problem, request, spans_of, state_of

QUICK = Effort(num_tree_nodes=20, time_limit_s=2.0)
every_policy = pytest.mark.parametrize("name", POLICIES)


def allocator_of(name: str, effort: Effort | None = QUICK) -> Allocator:
    allocator = POLICIES[name]().allocator
    return dataclasses.replace(allocator, effort=effort) if isinstance(allocator, HelixAllocator) else allocator


def check_fits(asked: Problem, spans: dict[int, tuple[int, int]]) -> None:
    for i, span in spans.items():
        assert Capacity(asked).fits(i, span), f"{span} does not fit offer {i}"


def even(num_offers: int) -> Problem:
    return problem([offer(f"a{i}", 8) for i in range(num_offers)])


def uneven() -> Problem:
    sizes = [20, 9, 5, 7, 3, 14, 4, 4]
    return problem([offer(f"{'ab'[i % 2]}{i}", size, 1 + i / 3) for i, size in enumerate(sizes)], ends=200)


def one_each() -> Problem:
    return problem([offer(f"a{i}", 14, 1 + i) for i in range(3)])


def tight() -> Problem:
    """Without a layer of memory to spare: no system's own KV share fits."""
    return problem([offer(f"a{i}", 4) for i in range(3)])


def across_regions() -> Problem:
    return problem([offer(name, 6) for name in ("a0", "b0", "c0")])


@every_policy
@pytest.mark.parametrize("make", [lambda: even(3), lambda: even(9), uneven, one_each, tight, across_regions])
def test_a_pool_that_is_large_enough_is_covered_within_memory(name: str, make: Callable[[], Problem]) -> None:
    asked = make()
    spans = spans_of(asked, allocator_of(name).allocate(asked))
    assert covers(spans.values(), 12)
    check_fits(asked, spans)


@every_policy
def test_a_pool_that_is_too_small_is_not_covered(name: str) -> None:
    asked = problem([offer("a0", 5), offer("a1", 6)])
    spans = spans_of(asked, allocator_of(name).allocate(asked))
    assert not covers(spans.values(), 12)
    check_fits(asked, spans)


@every_policy
@given(
    sizes=st.lists(st.integers(0, 16), min_size=1, max_size=10),
    ends=st.integers(0, 800),
    regions=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_slices_fit_and_ample_memory_is_enough(name: str, sizes: list[int], ends: int, regions: int) -> None:
    asked = problem([offer(f"{'abc'[i % regions]}{i}", s, 1 + i % 3) for i, s in enumerate(sizes)], ends=ends)
    spans = spans_of(asked, allocator_of(name, effort=None).allocate(asked))
    check_fits(asked, spans)
    largest = sorted(sizes)
    inner, end = sum(largest[:-2]), [max(0, size - 2) for size in largest[-2:]]
    if all(end) and len(end) == 2 and inner + sum(end) >= 12:
        assert covers(spans.values(), 12)


@every_policy
def test_the_same_problem_has_the_same_answer(name: str) -> None:
    assert allocator_of(name).allocate(uneven()) == allocator_of(name).allocate(uneven())


@every_policy
def test_an_empty_pool_has_no_placements(name: str) -> None:
    assert list(allocator_of(name).allocate(problem([]))) == []
    assert list(allocator_of(name).adapt(problem([]))) == []


@every_policy
def test_a_pool_that_serves_and_has_nobody_free_stays_as_it_is(name: str) -> None:
    held = [offer("a0", 12, held=(0, 6)), offer("a1", 12, held=(6, 12))]
    assert list(allocator_of(name).adapt(problem(held))) == []


@every_policy
def test_a_pool_in_which_layers_are_missing_is_made_whole_by_those_who_can(name: str) -> None:
    asked = problem([offer("a0", 12, held=(0, 6)), offer("a1", 12), offer("a2", 12)])
    after = {0: (0, 6)} | spans_of(asked, allocator_of(name).adapt(asked))
    assert covers(after.values(), 12)
    check_fits(asked, after)


@every_policy
def test_adapting_never_breaks_the_only_chain_for_a_newcomer(name: str) -> None:
    asked = problem([offer("a0", 12, held=(0, 6)), offer("a1", 12, held=(6, 12)), offer("b2", 3)])
    changes = spans_of(asked, allocator_of(name).adapt(asked))
    assert covers(({0: (0, 6), 1: (6, 12)} | changes).values(), 12)


@every_policy
def test_from_scratch_what_is_held_counts_for_nothing_and_is_named_too(name: str) -> None:
    fresh = even(4)
    before = allocator_of(name).allocate(fresh)
    layers = {p.key: p.layers for p in before}
    held = dataclasses.replace(
        fresh, offers=tuple(dataclasses.replace(o, held=layers.get(o.key)) for o in fresh.offers)
    )
    assert allocator_of(name).allocate(held) == before


@pytest.mark.parametrize("name", ["petals", "parallax-greedy-dp", "parallax-dp-dp", "helix"])
def test_a_slice_that_serves_nobody_any_more_is_put_to_use_unless_requests_run_over_it(name: str) -> None:
    held = [offer("a0", 12, held=(0, 6)), offer("a1", 12, held=(6, 12)), offer("a2", 12, held=(0, 7))]
    changes = spans_of(problem(held), allocator_of(name).adapt(problem(held)))
    assert list(changes) == [2]
    assert changes[2] in {(0, 6), (6, 12), (0, 12)}
    busy = problem([*held[:2], dataclasses.replace(held[2], is_busy=True)])
    assert list(allocator_of(name).adapt(busy)) == []


# ---------------------------------------------------------------- routers


def two_by_two() -> list[Device]:
    return [device("a0", (0, 6)), device("a1", (0, 6)), device("a2", (6, 12)), device("a3", (6, 12))]


@every_policy
def test_a_chain_holds_every_layer_once_in_order(name: str) -> None:
    router = POLICIES[name]().make_router(state_of(two_by_two()))
    chosen = chain(router)
    assert len(chosen) == 2
    assert chosen[0] in {"a0", "a1"}
    assert chosen[1] in {"a2", "a3"}


@every_policy
def test_no_device_without_room_is_used(name: str) -> None:
    devices = two_by_two()
    router = POLICIES[name]().make_router(state_of(devices))
    chains = [chain(router, request(4_000)) for _ in range(5)]
    assert [bool(c) for c in chains] == [True] * 4 + [False]
    assert all(d.num_free_kv_tokens >= 0 for d in devices)


@every_policy
def test_no_device_that_is_not_ready_is_used(name: str) -> None:
    devices = two_by_two()
    router = POLICIES[name]().make_router(state_of(devices))
    assert chain(router)
    devices[0].move(Signal.FAIL)
    router.changed(devices[0])
    devices[2].state = DeviceState.ASSIGNED
    router.changed(devices[2])
    assert [chain(router) for _ in range(3)] == [["a1", "a3"]] * 3


@every_policy
def test_a_device_that_is_gone_or_to_be_avoided_or_draining_is_not_used(name: str) -> None:
    devices = [*two_by_two(), device("a4", (0, 6)), device("a5", (6, 12))]
    state = state_of(devices)
    router = POLICIES[name]().make_router(state)
    del state.devices[devices[0].key]
    router.gone(devices[0])
    state.draining.add(devices[1].key.node_id)
    for _ in range(10):
        assert set(chain(router, request(avoid=["a3"]))) <= {"a2", "a4", "a5"}


@every_policy
def test_without_a_whole_chain_there_is_no_route(name: str) -> None:
    router = POLICIES[name]().make_router(state_of([device("a0", (0, 6)), device("a1", (7, 12))]))
    assert chain(router) == []


@every_policy
def test_a_model_that_nobody_holds_has_no_route(name: str) -> None:
    router = POLICIES[name]().make_router(state_of([]))
    assert router.route(request(), Variant.BFLOAT16, 0.0) is None
    assert router.route(request(), Variant.FLOAT32, 0.0) is None


@every_policy
def test_a_device_with_other_layers_than_before_is_used_for_those(name: str) -> None:
    devices = [device("a0", (0, 6)), device("a1", (6, 12))]
    router = POLICIES[name]().make_router(state_of(devices))
    assert chain(router) == ["a0", "a1"]
    devices[0].layers, devices[1].layers = LayerRange(6, 12), LayerRange(0, 6)
    for d in devices:
        router.changed(d)
    assert chain(router) == ["a1", "a0"]


@every_policy
def test_requests_that_end_make_room_again(name: str) -> None:
    devices = two_by_two()
    router = POLICIES[name]().make_router(state_of(devices))
    while chain(router, request(4_000)):
        pass
    for d in devices:
        d.num_requests = d.num_reserved_tokens = 0
        router.changed(d)
    assert chain(router, request(4_000))


def test_a_baseline_can_be_run_with_another_capacity_rule() -> None:
    asked = even(9)
    for name, rule in OWN_RULES.items():
        for wanted in (rule, FLOOR):
            policy = with_rule(POLICIES[name](), wanted)
            assert policy.allocator.rule == wanted  # type: ignore[attr-defined]
            assert policy.name == name
    spans = spans_of(asked, with_rule(POLICIES["hexgen"](), OWN_RULES["hexgen"]).allocator.allocate(asked))
    assert max(stop - start for start, stop in spans.values()) <= 6, "6.3 layers are 0.72 of the memory for 8.8"


def test_policies_can_be_combined_for_ablations() -> None:
    mixed = combine("mixed", POLICIES["petals"](), POLICIES["parallax-dp-rr"]())
    assert mixed.name == "mixed"
    assert mixed.allocator == POLICIES["petals"]().allocator
    assert mixed.make_router is POLICIES["parallax-dp-rr"]().make_router
