"""What is kept of nodes that left."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.scheduler import departed as departed_module
from coordinator.scheduler.departed import FLAPPING_PER_S, HALF_LIFE_S, MAX_PROBATION_S, PROBATION_S, Departed
from coordinator.scheduler.state import Device, Slice
from protocol.values import DeviceSpec, LayerRange, Variant
from tests.fakes import pool_facts as facts

LAST = Slice(facts.DIGEST, LayerRange(2, 5))


def fresh(number: int = 1, spec: DeviceSpec | None = None, generation: int = 0) -> Device:
    spec = spec or facts.spec()
    return Device(facts.key(number, spec.device_id), spec, generation=generation)


def seasoned(number: int = 1) -> Device:
    device = fresh(number, generation=7)
    device.benchmarks[facts.DIGEST] = facts.benchmark()
    device.last = LAST
    return device


def test_a_device_that_comes_back_knows_what_it_knew() -> None:
    departed, device = Departed(), fresh()
    departed.keep(facts.node_id(1), [seasoned()], 0.0)
    departed.come_back(facts.node_id(1), [device], 0.0)
    assert (device.benchmarks, device.last, device.generation) == ({facts.DIGEST: facts.benchmark()}, LAST, 7)
    assert len(departed) == 0


def test_what_the_node_itself_says_of_generations_counts_if_it_is_newer() -> None:
    departed, device = Departed(), fresh(generation=9)
    departed.keep(facts.node_id(1), [seasoned()], 0.0)
    departed.come_back(facts.node_id(1), [device], 0.0)
    assert device.generation == 9


@pytest.mark.parametrize(
    "changes", [{"variant": Variant.BFLOAT16}, {"name": "another CPU"}, {"device_id": facts.DeviceId("cuda:0")}]
)
def test_other_hardware_knows_nothing(changes: dict[str, object]) -> None:
    departed = Departed()
    device = fresh(spec=msgspec.structs.replace(facts.spec(), **changes))
    departed.keep(facts.node_id(1), [seasoned()], 0.0)
    departed.come_back(facts.node_id(1), [device], 0.0)
    assert (device.benchmarks, device.last, device.generation) == ({}, None, 0)


def test_other_memory_is_the_same_hardware() -> None:
    departed, device = Departed(), fresh(spec=facts.spec(3, memory_bytes=5))
    departed.keep(facts.node_id(1), [seasoned()], 0.0)
    departed.come_back(facts.node_id(1), [device], 0.0)
    assert device.benchmarks


def test_another_node_knows_nothing_of_it() -> None:
    departed, device = Departed(), fresh(2)
    departed.keep(facts.node_id(1), [seasoned()], 0.0)
    departed.come_back(facts.node_id(2), [device], 0.0)
    assert not device.benchmarks
    assert len(departed) == 1


def test_of_too_many_nodes_the_one_that_left_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departed_module, "MAX_NODES", 3)
    departed = Departed()
    for number in (1, 2, 3, 1, 4):
        departed.keep(facts.node_id(number), [seasoned(number)], 0.0)
    assert len(departed) == 3
    known = []
    for number in (1, 2, 3, 4):
        device = fresh(number)
        departed.come_back(facts.node_id(number), [device], 0.0)
        known += [number] * bool(device.benchmarks)
    assert known == [1, 3, 4]


# ---------------------------------------------------------------- how far to trust a node


def back_after(departed: Departed, leaves_at_s: list[float], now_s: float) -> Device:
    for at_s in leaves_at_s:
        departed.keep(facts.node_id(1), [], at_s)
    device = fresh()
    departed.come_back(facts.node_id(1), [device], now_s)
    return device


def test_one_who_never_left_is_trusted() -> None:
    device = back_after(Departed(), [], 0.0)
    assert (device.leaves_per_s, device.probation_until_s) == (0.0, 0.0)


def test_a_leave_or_two_are_no_flapping() -> None:
    device = back_after(Departed(), [0.0, 10.0], 20.0)
    assert 0.0 < device.leaves_per_s < FLAPPING_PER_S
    assert device.probation_until_s == 0.0


def test_three_leaves_within_an_hour_are() -> None:
    device = back_after(Departed(), [0.0, 10.0, 20.0], 30.0)
    assert device.leaves_per_s > FLAPPING_PER_S
    assert device.probation_until_s == 30.0 + PROBATION_S


def test_probation_doubles_with_each_leave_up_to_a_limit() -> None:
    waits = [back_after(Departed(), [0.0] * n, 0.0).probation_until_s for n in range(3, 13)]
    assert waits[:4] == [PROBATION_S * 2**n for n in range(4)]
    assert waits[-1] == MAX_PROBATION_S


def test_leaves_are_forgotten_by_halves() -> None:
    departed = Departed()
    departed.keep(facts.node_id(1), [], 0.0)
    departed.keep(facts.node_id(1), [], HALF_LIFE_S)
    assert departed.num_leaves(facts.node_id(1), HALF_LIFE_S) == pytest.approx(1.5)
    assert departed.num_leaves(facts.node_id(1), 30 * HALF_LIFE_S) < 1e-6


def test_a_constant_rate_of_leaving_is_found() -> None:
    every_s = 600.0
    device = back_after(Departed(), [n * every_s for n in range(200)], 199.5 * every_s)
    assert device.leaves_per_s == pytest.approx(1 / every_s, rel=0.1)


def test_what_live_work_has_shown_is_not_forgotten() -> None:
    departed, before, after = Departed(), seasoned(), fresh()
    before.slowdown, before.fetch_bytes_per_s = 1.7, 3e6
    departed.keep(facts.node_id(1), [before], 0.0)
    departed.come_back(facts.node_id(1), [after], 0.0)
    assert (after.slowdown, after.fetch_bytes_per_s) == (1.7, 3e6)
