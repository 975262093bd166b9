"""Phase 2: the cheapest complete chain that has room."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.routing import cheapest_chain, in_some_chain, missing_layers, thinnest_layers
from coordinator.scheduler.state import Device, DeviceState
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts


def holder(number: int, start: int, stop: int, *, layer_s: float = 0.01, free: int = 100, busy: int = 0) -> Device:
    made = Device(facts.key(number), facts.spec(), state=DeviceState.READY)
    made.benchmarks[facts.DIGEST] = facts.benchmark(layer_s)
    made.model, made.layers = facts.DIGEST, LayerRange(start, stop)
    made.num_kv_tokens, made.num_requests = free, busy
    return made


def numbers(chain: list[Device]) -> list[int]:
    return [facts.number_of(device.key.node_id) for device in chain]


def test_the_chain_holds_every_layer_once_in_order() -> None:
    devices = [holder(1, 4, 8), holder(2, 0, 4), holder(3, 2, 8)]
    assert numbers(cheapest_chain(devices, 8, 10)) == [2, 1]


def test_there_is_none_with_a_hole_or_with_overlaps_only() -> None:
    assert cheapest_chain([holder(1, 0, 4), holder(2, 5, 8)], 8, 10) == []
    assert cheapest_chain([holder(1, 0, 5), holder(2, 4, 8)], 8, 10) == []
    assert cheapest_chain([], 8, 10) == []


def test_the_quicker_device_is_taken() -> None:
    assert numbers(cheapest_chain([holder(1, 0, 8, layer_s=0.02), holder(2, 0, 8, layer_s=0.01)], 8, 10)) == [2]


def test_a_busy_device_is_left_for_a_slower_idle_one() -> None:
    devices = [holder(1, 0, 8, layer_s=0.01, busy=2), holder(2, 0, 8, layer_s=0.02)]
    assert numbers(cheapest_chain(devices, 8, 10)) == [2]


def test_a_device_without_room_or_still_loading_is_passed_over() -> None:
    loading = holder(3, 0, 8, layer_s=0.0001)
    loading.state = DeviceState.ASSIGNED
    full = holder(1, 0, 8, layer_s=0.0001, free=9)
    assert numbers(cheapest_chain([full, holder(2, 0, 8), loading], 8, 10)) == [2]
    assert cheapest_chain([full, loading], 8, 10) == []


slices = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 6), st.floats(0.001, 1)).filter(lambda s: s[0] < s[1]), max_size=7
)


def all_chains(devices: list[Device], num_layers: int, start: int = 0) -> list[list[Device]]:
    if start == num_layers:
        return [[]]
    found = []
    for device in devices:
        if device.layers is not None and device.layers.start == start:
            found += [[device, *rest] for rest in all_chains(devices, num_layers, device.layers.stop)]
    return found


def cost(chain: list[Device]) -> float:
    return sum(len(d.layers) * d.layer_time_s(facts.DIGEST) for d in chain if d.layers is not None)


@given(slices)
def test_no_chain_is_cheaper_and_none_is_overlooked(slices: list[tuple[int, int, float]]) -> None:
    devices = [holder(n, a, b, layer_s=s) for n, (a, b, s) in enumerate(slices)]
    chains = all_chains(devices, 6)
    found = cheapest_chain(devices, 6, 10)
    assert bool(found) == bool(chains)
    if found:
        assert found in chains
        assert cost(found) <= min(cost(chain) for chain in chains) * (1 + 1e-9)


@given(slices)
def test_in_some_chain_names_exactly_the_members_of_chains(slices: list[tuple[int, int, float]]) -> None:
    devices = [holder(n, a, b) for n, (a, b, _) in enumerate(slices)]
    expected = {device.key for chain in all_chains(devices, 6) for device in chain}
    assert in_some_chain(devices, 6) == expected


def test_missing_layers_come_as_runs() -> None:
    devices = [holder(1, 2, 4), holder(2, 6, 7)]
    assert missing_layers(devices, 10) == [LayerRange(0, 2), LayerRange(4, 6), LayerRange(7, 10)]
    assert missing_layers([], 3) == [LayerRange(0, 3)]
    assert missing_layers([holder(1, 0, 3)], 3) == []


def test_the_thinnest_layers_are_those_with_the_fewest_holders() -> None:
    whole = [holder(1, 0, 4), holder(2, 4, 8)]
    assert thinnest_layers([], 8) == [LayerRange(0, 8)]
    assert thinnest_layers(whole[:1], 8) == [LayerRange(4, 8)]
    assert thinnest_layers(whole, 8) == []
    assert thinnest_layers([*whole, holder(3, 0, 4)], 8) == [LayerRange(4, 8)]
    assert thinnest_layers([*whole, holder(3, 2, 6)], 8) == [LayerRange(0, 2), LayerRange(6, 8)]


@given(slices)
def test_runs_are_maximal_and_hold_exactly_the_layers_they_should(slices: list[tuple[int, int, float]]) -> None:
    devices = [holder(n, a, b) for n, (a, b, _) in enumerate(slices)]
    counts = [sum(a <= layer < b for a, b, _ in slices) for layer in range(6)]
    missing = missing_layers(devices, 6)
    assert [layer for run in missing for layer in range(run.start, run.stop)] == [i for i in range(6) if not counts[i]]
    assert all(before.stop < after.start for before, after in pairwise(missing))
    thin = [layer for run in thinnest_layers(devices, 6) for layer in range(run.start, run.stop)]
    assert thin == ([] if 0 < min(counts) == max(counts) else [i for i in range(6) if counts[i] == min(counts)])
