"""A device's stages: the table, and what is not in it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from client.agent.device import TRANSITIONS, Device, Loaded, Stage, Step, sent_bytes
from client.ipc import MAX_SENT_BYTES
from protocol.values import KV_BLOCK_TOKENS, MEMORY_FOR_ACTIVATIONS, LayerRange
from tests.client.agent.samples import CPU, assign, measure

HELD = Loaded(assign().manifest_hash, CPU.variant, LayerRange(0, 2), 10, True)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("step", Step)
def test_a_step_is_taken_by_the_table_or_is_a_defect(stage: Stage, step: Step) -> None:
    device = Device(CPU, stage)
    if (stage, step) in TRANSITIONS:
        device.move(step)
        assert device.stage is TRANSITIONS[stage, step]
    else:
        with pytest.raises(KeyError):
            device.move(step)
        assert device.stage is stage


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_can_be_reached_and_left(stage: Stage) -> None:
    assert stage in {before for before, _ in TRANSITIONS}
    assert stage in TRANSITIONS.values()


def test_a_worker_can_die_at_every_stage_but_dead() -> None:
    assert {stage for stage, step in TRANSITIONS if step is Step.WORKER_DOWN} == set(Stage) - {Stage.DEAD}


def test_the_generation_is_the_assignments() -> None:
    assert Device(CPU, job=assign(7)).generation == 7
    assert Device(CPU, job=measure()).generation == 0
    assert Device(CPU).generation == 0


@pytest.mark.parametrize(
    "device",
    [
        Device(CPU, Stage.IDLE, job=assign()),
        Device(CPU, Stage.LOADING),
        Device(CPU, Stage.DEAD, loaded=HELD),
        Device(CPU, Stage.STARTING, owed=1),
        Device(CPU, Stage.IDLE, owed=-1),
        Device(CPU, Stage.LOADING, job=assign(), loaded=HELD),
        Device(CPU, Stage.SERVING, job=assign()),
        Device(CPU, Stage.SERVING, job=assign(1, 2, 4), loaded=HELD),
        Device(CPU, Stage.SERVING, job=measure(), loaded=HELD),
    ],
)
def test_a_device_that_cannot_be_is_noticed(device: Device) -> None:
    with pytest.raises(AssertionError):
        device.validate()


def test_a_device_that_serves_what_it_was_assigned_is_fine() -> None:
    Device(CPU, Stage.SERVING, job=assign(), loaded=HELD).validate()


@pytest.mark.parametrize(
    ("room", "used", "left"),
    [(1600, 1600, 1200), (1600, 1200, 896), (1600, 100, 800), (1600, 9999, 1200), (16, 16, 16), (40, 40, 16)],
)
def test_room_is_lowered_below_what_was_in_use_but_by_no_more_than_half(room: int, used: int, left: int) -> None:
    device = Device(CPU, Stage.SERVING, assign(), replace(HELD, num_kv_tokens=room))
    lowered = device.lower_room(used)
    assert device.loaded == lowered == replace(HELD, num_kv_tokens=left)
    assert left % KV_BLOCK_TOKENS == 0
    assert device.room_share(HELD.manifest_hash, HELD.variant, HELD.layers) == min(1.0, left / room)
    assert device.room_share(HELD.manifest_hash, HELD.variant, LayerRange(0, 1)) == 1.0


def test_what_was_lowered_is_lowered_further() -> None:
    device = Device(CPU, Stage.SERVING, assign(), replace(HELD, num_kv_tokens=1600))
    device.lower_room(100)
    device.lower_room(100)
    assert device.room_share(HELD.manifest_hash, HELD.variant, HELD.layers) == 0.25


@pytest.mark.parametrize(("memory_bytes", "kept_bytes"), [(10**9, 4 * 10**7), (0, 0), (24 * 2**30, MAX_SENT_BYTES)])
def test_rows_that_were_sent_are_part_of_what_the_volunteer_offers(memory_bytes: int, kept_bytes: int) -> None:
    kept = sent_bytes(msgspec.structs.replace(CPU, memory_bytes=memory_bytes))
    assert kept == kept_bytes
    assert kept <= MEMORY_FOR_ACTIVATIONS * memory_bytes / 2
