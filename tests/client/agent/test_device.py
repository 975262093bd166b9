"""A device's stages: the table, and what is not in it."""

from __future__ import annotations

import pytest

from client.agent.device import TRANSITIONS, Device, Loaded, Stage, Step
from protocol.values import LayerRange
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
