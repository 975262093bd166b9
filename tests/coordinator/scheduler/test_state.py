"""The table of device states, and what the state knows."""

from __future__ import annotations

import pytest

from coordinator.scheduler.state import TRANSITIONS, Device, DeviceState, Signal, State
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts


def test_every_state_can_be_left_and_every_signal_is_used() -> None:
    assert {state for state, _ in TRANSITIONS} == set(DeviceState)
    assert {signal for _, signal in TRANSITIONS} == set(Signal)
    assert set(TRANSITIONS.values()) == set(DeviceState)


@pytest.mark.parametrize("state", DeviceState)
@pytest.mark.parametrize("signal", Signal)
def test_a_missing_transition_is_an_error(state: DeviceState, signal: Signal) -> None:
    device = Device(facts.key(1), facts.spec(), state=state)
    if (state, signal) in TRANSITIONS:
        device.move(signal)
        assert device.state is TRANSITIONS[state, signal]
    else:
        with pytest.raises(KeyError):
            device.move(signal)


def test_a_measured_time_of_zero_can_still_divide() -> None:
    device = Device(facts.key(1), facts.spec())
    device.benchmarks["m"] = facts.benchmark(0.0)
    assert device.layer_time_s("m") > 0


def test_holders_are_loading_or_ready() -> None:
    state = State()
    for number, device_state in enumerate(DeviceState):
        device = Device(facts.key(number), facts.spec(), state=device_state, model="m", layers=LayerRange(0, 1))
        state.devices[device.key] = device
    assert {d.state for d in state.holders("m")} == {DeviceState.ASSIGNED, DeviceState.READY}
    assert state.holders("other") == []


def test_nothing_new_may_be_planned_with_what_a_draining_node_has() -> None:
    state = State(draining={facts.node_id(1)})
    for number in (1, 2):
        device = Device(facts.key(number), facts.spec(), state=DeviceState.READY, model="m", layers=LayerRange(0, 1))
        state.devices[device.key] = device
    assert [d.key for d in state.holders("m")] == [d.key for d in state.usable(DeviceState.READY)] == [facts.key(2)]
    assert len(state.in_state(DeviceState.READY)) == 2
