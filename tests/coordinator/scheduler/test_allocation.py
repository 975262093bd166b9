"""Phase 1: layers in proportion to measured speed, within memory, on as few stages as hold them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.allocation import plan_pipeline, room_for, split_layers
from coordinator.scheduler.cost import Place
from coordinator.scheduler.state import Device
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts

MODEL = facts.model(24)


def device(number: int, max_layers: int, layer_s: float = 0.01, head_s: float = 0.0) -> Device:
    made = Device(facts.key(number), facts.spec(max_layers))
    made.benchmarks[MODEL.manifest_hash] = facts.benchmark(layer_s, head_s)
    return made


def place(max_layers: int, layer_s: float = 0.01, extra_s: float = 0.0) -> Place:
    return Place(device(1, max_layers), max_layers, layer_s, extra_s)


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[Place]]:
    times = st.floats(1e-6, 1.0)
    places = draw(st.lists(st.builds(place, st.integers(1, 60), times, st.just(0.0) | times), min_size=1, max_size=8))
    room = sum(p.max_layers for p in places)
    return draw(st.integers(len(places), room)), places


@given(splits())
def test_all_layers_are_split_within_everybodys_memory(split: tuple[int, list[Place]]) -> None:
    num_layers, places = split
    counts = split_layers(num_layers, places)
    assert sum(counts) == num_layers
    assert all(1 <= count <= p.max_layers for count, p in zip(counts, places, strict=True))


@given(splits())
def test_no_layer_could_be_moved_to_make_the_slowest_stage_quicker(split: tuple[int, list[Place]]) -> None:
    """Near-equal stage times: the best whole-number split has the lowest possible maximum."""
    num_layers, places = split
    counts = split_layers(num_layers, places)
    times = [p.extra_s + p.layer_s * n for n, p in zip(counts, places, strict=True)]
    slowest = max(range(len(times)), key=lambda i: times[i])
    if counts[slowest] == 1:
        return
    for i, p in enumerate(places):
        if i != slowest and counts[i] < p.max_layers:
            assert times[i] + p.layer_s >= times[slowest] * (1 - 1e-9)


def test_a_device_that_is_twice_as_fast_gets_twice_the_layers() -> None:
    assert split_layers(24, [place(24, 0.01), place(24, 0.02)]) == [16, 8]


def test_the_head_counts_as_work() -> None:
    assert split_layers(24, [place(24, 0.01), place(24, 0.01, extra_s=0.04)]) == [14, 10]


def test_a_full_device_hands_the_rest_to_the_others() -> None:
    assert split_layers(24, [place(4, 0.001), place(24, 0.01), place(24, 0.01)]) == [4, 10, 10]


def test_one_device_takes_all_when_it_can() -> None:
    placements = plan_pipeline(MODEL, [device(1, 12), device(2, 24), device(3, 12)])
    assert [(p.device.key, p.layers) for p in placements] == [(facts.key(2), LayerRange(0, 24))]


def test_stages_are_as_few_as_hold_all_layers_and_leave_no_gap() -> None:
    placements = plan_pipeline(MODEL, [device(n, 9) for n in range(1, 6)])
    assert [p.layers for p in placements] == [LayerRange(0, 8), LayerRange(8, 16), LayerRange(16, 24)]


def test_too_small_devices_give_no_plan() -> None:
    assert plan_pipeline(MODEL, [device(1, 12), device(2, 11)]) == []
    assert plan_pipeline(MODEL, []) == []
    assert plan_pipeline(MODEL, [device(1, 0), device(2, 0)]) == []


def test_a_hole_is_planned_alone() -> None:
    placements = plan_pipeline(MODEL, [device(1, 5), device(2, 5)], LayerRange(8, 16))
    assert [p.layers for p in placements] == [LayerRange(8, 12), LayerRange(12, 16)]


def test_a_reason_is_given_for_people() -> None:
    by_memory, by_speed = plan_pipeline(MODEL, [device(1, 6, 0.001), device(2, 24, 0.02)], LayerRange(0, 24)), None
    assert len(by_memory) == 1
    by_speed = plan_pipeline(MODEL, [device(1, 6, 0.001), device(2, 20, 0.02)])
    assert {p.reason.split(",")[1].split(":")[0].strip() for p in by_speed} == {
        "all that fits",
        "its share by measured speed",
    }


@pytest.mark.parametrize(("sizes", "room"), [((), 0), ((0,), 0), ((5, 6), 11), ((24, 24), 24)])
def test_room_is_what_they_could_hold_together(sizes: tuple[int, ...], room: int) -> None:
    assert room_for(MODEL, [device(n, size) for n, size in enumerate(sizes, start=1)]) == room


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(1e-4, 1)), max_size=8), st.integers(1, 24), st.integers(0, 23))
def test_a_plan_covers_its_span_once_in_order(sizes: list[tuple[int, float]], length: int, start: int) -> None:
    span = LayerRange(start, min(24, start + length))
    devices = [device(n, size, layer_s) for n, (size, layer_s) in enumerate(sizes, start=1)]
    placements = plan_pipeline(MODEL, devices, span)
    if placements:
        layers = [layer for p in placements for layer in range(p.layers.start, p.layers.stop)]
        assert layers == list(range(span.start, span.stop))
        assert len({p.device.key for p in placements}) == len(placements)
    else:
        assert sum(min(24, size) for size, _ in sizes) < len(span)


def test_the_two_roomiest_devices_take_the_ends_where_embedding_and_head_must_fit_too() -> None:
    """The small one could hold layers, but neither end: it goes in the middle instead of making the plan fail."""
    heavy_ends = replace(MODEL, embedding_numel=20_000_000, head_numel=20_000_000)
    layer_bytes = 4 * (1_000_000 + 10 * 1000)
    devices = [sized(1, 35 * layer_bytes), sized(2, 2 * layer_bytes), sized(3, 28 * layer_bytes)]
    placements = plan_pipeline(heavy_ends, devices)
    assert [facts.number_of(p.device.key.node_id) for p in placements] == [1, 2, 3]
    assert [(p.layers.start, p.layers.stop) for p in placements][-1][1] == MODEL.num_layers


def sized(number: int, usable_bytes: int) -> Device:
    made = Device(facts.key(number), facts.spec(memory_bytes=int(usable_bytes / 0.9) + 1))
    made.benchmarks[MODEL.manifest_hash] = facts.benchmark(0.01, 0.0)
    return made
