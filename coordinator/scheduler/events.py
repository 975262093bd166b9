"""What the scheduler is told. Time comes beside each event, never inside."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol.values import DeviceSpec, HeldSlice, LayerBenchmark, NodeId, SessionId


@dataclass(frozen=True, slots=True)
class ModelAdded:
    model: ModelFacts


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """The pool does not serve the model any more: whatever runs ends, whatever holds it is free."""

    manifest_hash: str


@dataclass(frozen=True, slots=True)
class NodeJoined:
    node_id: NodeId
    devices: tuple[DeviceSpec, ...]
    held: tuple[HeldSlice, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeLeft:
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """From now on the node gets nothing new (`on`), or is as good as any other again."""

    node_id: NodeId
    on: bool


@dataclass(frozen=True, slots=True)
class DeviceMeasured:
    device: DeviceKey
    manifest_hash: str
    benchmark: LayerBenchmark


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """Measuring or serving failed. `generation` 0 means measuring."""

    device: DeviceKey
    generation: int


@dataclass(frozen=True, slots=True)
class SliceReady:
    device: DeviceKey
    generation: int
    num_kv_tokens: int


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request wants a chain: a new one, or a running one that lost its own (`resumed`, which may wait longer)."""

    session_id: SessionId
    manifest_hash: str
    num_tokens: int
    resumed: bool = False
    avoid: frozenset[DeviceKey] = frozenset()


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The request needs its chain no more, however it ended. Harmless when it has none."""

    session_id: SessionId


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened but time: deadlines are looked at."""


Event = (
    ModelAdded
    | ModelRemoved
    | NodeJoined
    | NodeLeft
    | NodeDraining
    | DeviceMeasured
    | DeviceFailed
    | SliceReady
    | RequestArrived
    | RequestFinished
    | TimePassed
)
