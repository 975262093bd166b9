"""What is kept of nodes that left."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.scheduler import departed as departed_module
from coordinator.scheduler.departed import Departed
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
    departed.keep(facts.node_id(1), [seasoned()])
    departed.come_back(facts.node_id(1), [device])
    assert (device.benchmarks, device.last, device.generation) == ({facts.DIGEST: facts.benchmark()}, LAST, 7)
    assert len(departed) == 0


def test_what_the_node_itself_says_of_generations_counts_if_it_is_newer() -> None:
    departed, device = Departed(), fresh(generation=9)
    departed.keep(facts.node_id(1), [seasoned()])
    departed.come_back(facts.node_id(1), [device])
    assert device.generation == 9


@pytest.mark.parametrize(
    "changes", [{"variant": Variant.BFLOAT16}, {"name": "another CPU"}, {"device_id": facts.DeviceId("cuda:0")}]
)
def test_other_hardware_knows_nothing(changes: dict[str, object]) -> None:
    departed = Departed()
    device = fresh(spec=msgspec.structs.replace(facts.spec(), **changes))
    departed.keep(facts.node_id(1), [seasoned()])
    departed.come_back(facts.node_id(1), [device])
    assert (device.benchmarks, device.last, device.generation) == ({}, None, 0)


def test_other_memory_is_the_same_hardware() -> None:
    departed, device = Departed(), fresh(spec=facts.spec(3, memory_bytes=5))
    departed.keep(facts.node_id(1), [seasoned()])
    departed.come_back(facts.node_id(1), [device])
    assert device.benchmarks


def test_another_node_knows_nothing_of_it() -> None:
    departed, device = Departed(), fresh(2)
    departed.keep(facts.node_id(1), [seasoned()])
    departed.come_back(facts.node_id(2), [device])
    assert not device.benchmarks
    assert len(departed) == 1


def test_of_too_many_nodes_the_one_that_left_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departed_module, "MAX_NODES", 3)
    departed = Departed()
    for number in (1, 2, 3, 1, 4):
        departed.keep(facts.node_id(number), [seasoned(number)])
    assert len(departed) == 3
    known = []
    for number in (1, 2, 3, 4):
        device = fresh(number)
        departed.come_back(facts.node_id(number), [device])
        known += [number] * bool(device.benchmarks)
    assert known == [1, 3, 4]
