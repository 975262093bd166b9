"""What the scheduler knows: models, devices, pipelines, waiting requests. State transitions are a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from protocol.values import DeviceId, DeviceSpec, LayerBenchmark, LayerRange, NodeId, SessionId, Variant

ITEM_BYTES = {Variant.FLOAT32: 4, Variant.BFLOAT16: 2}


class DeviceKey(NamedTuple):
    """What serves: a device of a node."""

    node_id: NodeId
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's sizes, in numbers of elements: bytes follow from the variant."""

    name: str
    manifest_hash: str
    context_length: int
    layer_numels: tuple[int, ...]
    embedding_numel: int
    head_numel: int
    kv_numel_per_token: int
    """Of one layer."""

    @property
    def num_layers(self) -> int:
        return len(self.layer_numels)


class DeviceState(Enum):
    NEW = auto()
    MEASURING = auto()
    FREE = auto()
    ASSIGNED = auto()
    READY = auto()
    FAILED = auto()


class Signal(Enum):
    """What moves a device from one state to another."""

    MEASURE = auto()
    MEASURED = auto()
    ASSIGN = auto()
    LOADED = auto()
    RELEASE = auto()
    FAIL = auto()
    RETRY = auto()
    DROP = auto()
    """What it measures is wanted no more; its answer will not be waited for."""


TRANSITIONS: dict[tuple[DeviceState, Signal], DeviceState] = {
    (DeviceState.NEW, Signal.MEASURE): DeviceState.MEASURING,
    (DeviceState.MEASURING, Signal.MEASURED): DeviceState.FREE,
    (DeviceState.MEASURING, Signal.FAIL): DeviceState.FAILED,
    (DeviceState.MEASURING, Signal.DROP): DeviceState.NEW,
    (DeviceState.FREE, Signal.MEASURE): DeviceState.MEASURING,
    (DeviceState.FREE, Signal.ASSIGN): DeviceState.ASSIGNED,
    (DeviceState.ASSIGNED, Signal.LOADED): DeviceState.READY,
    (DeviceState.ASSIGNED, Signal.RELEASE): DeviceState.FREE,
    (DeviceState.ASSIGNED, Signal.FAIL): DeviceState.FAILED,
    (DeviceState.READY, Signal.RELEASE): DeviceState.FREE,
    (DeviceState.READY, Signal.FAIL): DeviceState.FAILED,
    (DeviceState.FAILED, Signal.RETRY): DeviceState.NEW,
}


class Slice(NamedTuple):
    """Some layers of a model."""

    manifest_hash: str
    layers: LayerRange


@dataclass(slots=True)
class Device:
    """A device and what it holds. `layers` and `model` are set while ASSIGNED or READY."""

    key: DeviceKey
    spec: DeviceSpec
    state: DeviceState = DeviceState.NEW
    benchmarks: dict[str, LayerBenchmark] = field(default_factory=dict)
    generation: int = 0
    measuring: str = ""
    """The model it was last asked to measure."""
    model: str | None = None
    layers: LayerRange | None = None
    last: Slice | None = None
    """What it was assigned last: those weights are on its disk, though it may hold them no more."""
    num_kv_tokens: int = 0
    num_reserved_tokens: int = 0
    num_requests: int = 0
    num_failures: int = 0
    retry_at_s: float = 0.0

    def move(self, signal: Signal) -> None:
        """Take the transition; KeyError for one that the table does not have (a defect of ours)."""
        self.state = TRANSITIONS[self.state, signal]

    @property
    def num_free_kv_tokens(self) -> int:
        return self.num_kv_tokens - self.num_reserved_tokens

    def layer_time_s(self, model: str) -> float:
        """Measured decode time of one layer at batch 1; never zero, so that it can divide."""
        return max(self.benchmarks[model].decode[0].layer_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without a chain."""

    session_id: SessionId
    manifest_hash: str
    num_tokens: int
    resumed: bool
    avoid: frozenset[DeviceKey]
    give_up_at_s: float


@dataclass(frozen=True, slots=True)
class Running:
    manifest_hash: str
    devices: tuple[DeviceKey, ...]
    num_tokens: int
    since_s: float


@dataclass(slots=True)
class State:
    models: dict[str, ModelFacts] = field(default_factory=dict)
    devices: dict[DeviceKey, Device] = field(default_factory=dict)
    waiting: dict[SessionId, Waiting] = field(default_factory=dict)
    running: dict[SessionId, Running] = field(default_factory=dict)
    draining: set[NodeId] = field(default_factory=set)
    """Nodes that finish what runs on them and get nothing new. One that left and comes back is still one of them."""

    def in_state(self, *states: DeviceState) -> list[Device]:
        return [device for device in self.devices.values() if device.state in states]

    def usable(self, *states: DeviceState) -> list[Device]:
        """Devices in one of these states, of nodes that are not draining: what anything new may be planned with."""
        return [device for device in self.in_state(*states) if device.key.node_id not in self.draining]

    def holders(self, model: str) -> list[Device]:
        """Devices that hold or load layers of the model, for whatever comes next: without those that drain."""
        return [d for d in self.usable(DeviceState.ASSIGNED, DeviceState.READY) if d.model == model]
