"""The simplest scheduler that can serve: fixed pipelines in order of joining, in turn, first come first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command
from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol.values import DeviceSpec, LayerRange, NodeId, SessionId


@dataclass
class Held:
    spec: DeviceSpec
    generation: int = 0
    layers: LayerRange | None = None
    num_kv_tokens: int = 0
    num_reserved: int = 0
    pipeline: int = -1


@dataclass
class PlainScheduler:
    """`max_layers`: of every device. `overcommits`: it forgets the KV room (to see that physics does not)."""

    max_layers: int = 1_000
    overcommits: bool = False
    max_waiting: int = 10_000
    devices: dict[DeviceKey, Held] = field(default_factory=dict)
    model: ModelFacts | None = None
    queue: deque[ev.RequestArrived] = field(default_factory=deque)
    running: dict[SessionId, tuple[list[Held], int]] = field(default_factory=dict)
    started: list[cmd.StartChain] = field(default_factory=list)
    seen: list[ev.Event] = field(default_factory=list)
    """News of nodes, in order."""
    next_pipeline: int = 0

    def handle(self, event: ev.Event, now_s: float) -> Sequence[Command]:
        if not isinstance(event, ev.TimePassed | ev.RequestArrived | ev.RequestFinished):
            self.seen.append(event)
        match event:
            case ev.NodeJoined():
                self._drop(event.node_id)
                self.devices |= {DeviceKey(event.node_id, s.device_id): Held(s) for s in event.devices}
                return self._measure(event.node_id) if self.model else []
            case ev.ModelAdded():
                self.model = event.model
                return self._measure()
            case ev.DeviceMeasured() | ev.NodeLeft():
                if isinstance(event, ev.NodeLeft):
                    self._drop(event.node_id)
                return [*self._assign(), *self._serve()]
            case ev.SliceReady():
                self.devices[event.device].num_kv_tokens = event.num_kv_tokens
                return self._serve()
            case ev.RequestArrived():
                self._free(event.session_id)
                if len(self.queue) >= self.max_waiting:
                    return [cmd.RefuseRequest(event.session_id, "queue_full", "Too many wait.", 5.0)]
                self.queue.append(event)
                return self._serve()
            case ev.RequestFinished():
                self._free(event.session_id)
                return self._serve()
        return []

    def _measure(self, node_id: NodeId | None = None) -> list[Command]:
        assert self.model is not None
        keys = [key for key in self.devices if node_id in (None, key.node_id)]
        return [cmd.Measure(k, self.model.manifest_hash, self.devices[k].spec.variant) for k in keys]

    def _assign(self) -> list[Command]:
        """Free devices fill up what is missing, front to back."""
        assert self.model is not None
        commands: list[Command] = []
        for key, device in self.devices.items():
            if device.layers is None:
                start, pipeline = self._next_start()
                stop = min(self.model.num_layers, start + self.max_layers)
                device.layers, device.pipeline, device.generation = LayerRange(start, stop), pipeline, 1
                digest, variant = self.model.manifest_hash, device.spec.variant
                commands.append(cmd.Assign(key, 1, digest, variant, device.layers, "next in line"))
        return commands

    def _next_start(self) -> tuple[int, int]:
        assert self.model is not None
        for pipeline in range(len(self.devices) + 1):
            at = 0
            members = {d.layers.start: d for d in self.devices.values() if d.layers and d.pipeline == pipeline}
            while at in members:
                layers = members[at].layers
                assert layers is not None
                at = layers.stop
            if at < self.model.num_layers:
                return at, pipeline
        raise AssertionError("there is always one more pipeline")

    def _pipelines(self) -> list[list[tuple[DeviceKey, Held]]]:
        assert self.model is not None
        numbers = sorted({d.pipeline for d in self.devices.values() if d.num_kv_tokens})
        found = []
        for number in numbers:
            members = [(k, d) for k, d in self.devices.items() if d.pipeline == number and d.num_kv_tokens]
            members.sort(key=lambda member: member[1].layers.start if member[1].layers else 0)
            if sum(len(d.layers) for _, d in members if d.layers) == self.model.num_layers:
                found.append(members)
        return found

    def _serve(self) -> list[Command]:
        commands: list[Command] = []
        pipelines = self._pipelines() if self.queue else []
        while self.queue and pipelines:
            event = self.queue[0]
            self.next_pipeline += 1
            turned = pipelines[self.next_pipeline % len(pipelines) :] + pipelines
            roomy = (p for p in turned if self.overcommits or all(_room(d) >= event.num_tokens for _, d in p))
            pipeline = next(roomy, None)
            if pipeline is None:
                break
            self.queue.popleft()
            for _, device in pipeline:
                device.num_reserved += event.num_tokens
            self.running[event.session_id] = ([d for _, d in pipeline], event.num_tokens)
            stages = [cmd.ChainStage(k, d.generation, d.layers) for k, d in pipeline if d.layers]
            self.started.append(cmd.StartChain(event.session_id, tuple(stages)))
            commands.append(self.started[-1])
        return commands

    def _free(self, session_id: SessionId) -> None:
        devices, num_tokens = self.running.pop(session_id, ([], 0))
        for device in devices:
            device.num_reserved -= num_tokens

    def _drop(self, node_id: NodeId) -> None:
        self.devices = {key: device for key, device in self.devices.items() if key.node_id != node_id}


def _room(device: Held) -> int:
    return device.num_kv_tokens - device.num_reserved
