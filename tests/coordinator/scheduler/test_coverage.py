"""Which layers are held how often, and which slices make whole chains."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.coverage import in_some_chain, missing_layers, roomiest_chain, thinnest_layers
from coordinator.scheduler.state import Device
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts


def holder(number: int, start: int, stop: int, *, room: int = 100) -> Device:
    made = Device(facts.key(number), facts.spec())
    made.model, made.layers, made.num_kv_tokens = facts.DIGEST, LayerRange(start, stop), room
    return made


slices = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 9)).filter(lambda s: s[0] < s[1]), max_size=7
)


def all_chains(devices: list[Device], num_layers: int, start: int = 0) -> list[list[Device]]:
    if start == num_layers:
        return [[]]
    found = []
    for device in devices:
        if device.layers is not None and device.layers.start == start:
            found += [[device, *rest] for rest in all_chains(devices, num_layers, device.layers.stop)]
    return found


@given(slices)
def test_in_some_chain_names_exactly_the_members_of_chains(slices: list[tuple[int, int, int]]) -> None:
    devices = [holder(n, a, b) for n, (a, b, _) in enumerate(slices)]
    expected = {device.key for chain in all_chains(devices, 6) for device in chain}
    assert in_some_chain(devices, 6) == expected


@given(slices)
def test_no_chain_is_roomier_than_the_roomiest_and_none_is_overlooked(slices: list[tuple[int, int, int]]) -> None:
    devices = [holder(n, a, b, room=room) for n, (a, b, room) in enumerate(slices)]
    chains = all_chains(devices, 6)
    found = roomiest_chain(devices, 6)
    assert bool(found) == bool(chains)
    if found:
        assert found in chains
        widest = max(min(device.num_kv_tokens for device in chain) for chain in chains)
        assert min(device.num_kv_tokens for device in found) == widest


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
def test_runs_are_maximal_and_hold_exactly_the_layers_they_should(slices: list[tuple[int, int, int]]) -> None:
    devices = [holder(n, a, b) for n, (a, b, _) in enumerate(slices)]
    counts = [sum(a <= layer < b for a, b, _ in slices) for layer in range(6)]
    missing = missing_layers(devices, 6)
    assert [layer for run in missing for layer in range(run.start, run.stop)] == [i for i in range(6) if not counts[i]]
    assert all(before.stop < after.start for before, after in pairwise(missing))
    thin = [layer for run in thinnest_layers(devices, 6) for layer in range(run.start, run.stop)]
    assert thin == ([] if 0 < min(counts) == max(counts) else [i for i in range(6) if counts[i] == min(counts)])
