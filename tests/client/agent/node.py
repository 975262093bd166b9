"""An AgentCore under test: every event is followed by a check of all invariants; shortcuts to each stage."""

from __future__ import annotations

from typing import TypeVar

from client import ipc
from client.agent.commands import Command, TellPool, TellWorker
from client.agent.core import AgentCore
from client.agent.device import Device, Stage
from client.agent.events import Downloaded, Event, ManifestArrived, PoolSaid, WorkerSaid
from protocol.messages import AssignSlice, CoordinatorMessage, NodeMessage
from protocol.values import DeviceSpec
from tests.client.agent.samples import CPU, NODE, assign, measure, model

C = TypeVar("C")
FOLDER = "/weights/x"
READY = ipc.WorkerReady(ipc.IPC_VERSION, "2.13", "cpu", 10**9)
LOADED = ipc.SliceLoaded(1000, 3_000_000, True)


class Node:
    """The core and shortcuts; `said` and `told` are what the last event made it say to the pool and its workers."""

    def __init__(self, *devices: DeviceSpec) -> None:
        self.now_s = 0.0
        self.core = AgentCore(NODE, devices or (CPU,))
        self.commands: list[Command] = self.core.start()

    def handle(self, event: Event) -> list[Command]:
        self.commands = self.core.handle(event, self.now_s)
        self.core.validate()
        return self.commands

    def pool(self, message: CoordinatorMessage) -> list[Command]:
        return self.handle(PoolSaid(message))

    def worker(self, message: ipc.WorkerMessage, spec: DeviceSpec = CPU) -> list[Command]:
        return self.handle(WorkerSaid(spec.device_id, message))

    def manifest(self) -> list[Command]:
        return self.handle(ManifestArrived(model().digest, model().manifest))

    def downloaded(self, spec: DeviceSpec = CPU) -> list[Command]:
        job = self.device(spec).job
        assert isinstance(job, AssignSlice)
        return self.handle(Downloaded(spec.device_id, job, 5, 5, FOLDER))

    @property
    def said(self) -> list[NodeMessage]:
        return [command.message for command in self.commands if isinstance(command, TellPool)]

    @property
    def told(self) -> list[ipc.AgentMessage]:
        return [command.message for command in self.commands if isinstance(command, TellWorker)]

    def of(self, kind: type[C]) -> list[C]:
        return [command for command in self.commands if isinstance(command, kind)]

    def device(self, spec: DeviceSpec = CPU) -> Device:
        return self.core.devices[spec.device_id]


def node_at(stage: Stage, *devices: DeviceSpec) -> Node:
    """A node whose first device is at that stage (with layers 0-1 as generation 1, where it has an assignment)."""
    node = Node(*devices)
    spec = next(iter(node.core.devices.values())).spec
    for step in _ROADS[stage]:
        _STEPS[step](node, spec)
    assert node.device(spec).stage is stage
    return node


_STEPS = {
    "ready": lambda node, spec: node.worker(READY, spec),
    "measure": lambda node, spec: node.pool(measure(spec)),
    "assign": lambda node, spec: node.pool(assign(device=spec)),
    "manifest": lambda node, spec: node.manifest(),
    "planned": lambda node, spec: node.worker(ipc.SlicePlanned(model().tensor_names(0, 1)), spec),
    "downloaded": lambda node, spec: node.downloaded(spec),
    "loaded": lambda node, spec: node.worker(LOADED, spec),
}
_ROADS = {
    Stage.STARTING: (),
    Stage.IDLE: ("ready",),
    Stage.MEASURING: ("ready", "measure", "manifest"),
    Stage.FETCHING: ("ready", "assign"),
    Stage.PLANNING: ("ready", "assign", "manifest"),
    Stage.DOWNLOADING: ("ready", "assign", "manifest", "planned"),
    Stage.LOADING: ("ready", "assign", "manifest", "planned", "downloaded"),
    Stage.SERVING: ("ready", "assign", "manifest", "planned", "downloaded", "loaded"),
}
AWAKE = tuple(stage for stage in _ROADS if stage is not Stage.STARTING)
