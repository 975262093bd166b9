"""The node's state for people, derived from the core: never stored, so it cannot be out of date. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from client.agent.core import AgentCore
from client.agent.device import Device, Stage
from client.status import AgentState, DeviceStatus, PauseInfo, Status
from protocol.messages import AssignSlice
from protocol.values import DeviceId

STATE_OF_STAGE = {
    Stage.STARTING: AgentState.CONNECTING,
    Stage.IDLE: AgentState.WAITING,
    Stage.MEASURING: AgentState.MEASURING,
    Stage.FETCHING: AgentState.DOWNLOADING,
    Stage.PLANNING: AgentState.DOWNLOADING,
    Stage.DOWNLOADING: AgentState.DOWNLOADING,
    Stage.LOADING: AgentState.LOADING,
    Stage.SERVING: AgentState.SERVING,
    Stage.DEAD: AgentState.FAILED,
}
_MOST_TELLING = (
    AgentState.SERVING,
    AgentState.LOADING,
    AgentState.DOWNLOADING,
    AgentState.MEASURING,
    AgentState.WAITING,
)
"""With several devices the node shows the state of the one that has come furthest.

A dead worker is started again by itself: the node as a whole has not FAILED, it is CONNECTING again."""


def device_status(device: Device) -> DeviceStatus:
    job = device.job if isinstance(device.job, AssignSlice) else None
    return DeviceStatus(
        device_id=device.spec.device_id,
        name=device.spec.name,
        state=STATE_OF_STAGE[device.stage],
        model_name=job.model_name if job else "",
        layers=job.layers if job else None,
        num_layers=job.num_layers if job else 0,
        done_bytes=device.done_bytes,
        total_bytes=device.total_bytes,
    )


def joined_status(core: AgentCore, pool_name: str, pids: Mapping[DeviceId, int]) -> Status:
    """The status of a node that is in the pool."""
    devices = tuple(device_status(device) for device in core.devices.values())
    states = {device.state for device in devices}
    state = next((state for state in _MOST_TELLING if state in states), AgentState.CONNECTING)
    return Status(
        state=state,
        message=_message(core, state),
        notice=_notice(core),
        pool_name=pool_name,
        devices=devices,
        num_sessions=core.switch.num_sessions,
        num_tokens=core.num_tokens,
        worker_pids=tuple(pids.values()),
    )


def offline_status(core: AgentCore, pool_name: str, pids: Mapping[DeviceId, int], waiting_for: str) -> Status:
    """The status of a node that is not in the pool: `waiting_for` says why, unless its own workers are the reason."""
    return Status(
        state=AgentState.CONNECTING,
        message=waiting_for if core.usable_devices else _problem(core) or "Starting the worker.",
        notice=_notice(core),
        pool_name=pool_name,
        devices=tuple(_offline(device_status(device)) for device in core.devices.values()),
        num_tokens=core.num_tokens,
        worker_pids=tuple(pids.values()),
    )


def _offline(device: DeviceStatus) -> DeviceStatus:
    """What is loaded is kept, but it serves nobody."""
    serves = device.state is AgentState.SERVING
    return structs.replace(device, state=AgentState.CONNECTING) if serves else device


def paused_status(pause: PauseInfo) -> Status:
    """The status of a node that has left the pool until nobody else needs the machine."""
    why = f"Paused: {pause.detail}." if pause.detail else "Paused."
    return Status(AgentState.PAUSED, f"{why} The GPU's memory is free.", pause=pause)


def _message(core: AgentCore, state: AgentState) -> str:
    waiting = "The pool has no layers for this machine yet." if state is AgentState.WAITING else ""
    return _problem(core) or waiting


def _problem(core: AgentCore) -> str:
    return next((device.message for device in core.devices.values() if device.message), "")


def _notice(core: AgentCore) -> str:
    return next((device.notice for device in core.devices.values() if device.notice), "")
