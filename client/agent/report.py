"""The node's state for people, derived from the core: never stored, so it cannot be out of date. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from client.agent.core import AgentCore
from client.agent.device import Device, Stage
from client.status import AgentState, DeviceStatus, Status
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
    AgentState.FAILED,
    AgentState.CONNECTING,
)
"""With several devices the node shows the state of the one that has come furthest."""


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
    state = next(state for state in _MOST_TELLING if state in states)
    return Status(
        state=state,
        message=_message(core, state),
        pool_name=pool_name,
        devices=devices,
        num_sessions=core.switch.num_sessions,
        num_tokens=core.num_tokens,
        worker_pids=tuple(pids.values()),
    )


def _message(core: AgentCore, state: AgentState) -> str:
    problems = [device.message for device in core.devices.values() if device.message]
    if problems:
        return problems[0]
    return "The pool has no layers for this machine yet." if state is AgentState.WAITING else ""
