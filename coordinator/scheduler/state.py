"""What the scheduler knows: models, devices, pipelines, waiting requests. State transitions are a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Self

from coordinator.scheduler.links import LinkMap
from protocol.quantisation import NOTHING, Packed
from protocol.values import DeviceId, DeviceSpec, LayerBenchmark, LayerRange, NodeId, Quantisation, SessionId, Variant

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
    hidden_size: int = 0
    """Elements of one row on the wire."""
    active_numels: tuple[int, ...] = ()
    """Per layer, what one token's decode step reads: of a mixture of experts only those that are chosen. Empty: all."""
    kv_numels: tuple[int, ...] = ()
    """Per layer and token, where layers differ; empty: `kv_numel_per_token` each."""
    windows: tuple[int | None, ...] = ()
    """Per layer, how many tokens it keeps at most (sliding attention); empty: all layers keep everything."""
    weight_bits: float | None = None
    """Bits per weight of a quantised model of which no more is known (simulations); None: as the variant, and what is
    packed below."""
    packed_layers: tuple[Packed, ...] = ()
    """Per layer, what is in fewer bits; empty: nothing."""
    packed_embedding: Packed = NOTHING
    packed_head: Packed = NOTHING
    quantisation: Quantisation | None = None
    min_session_tokens: int = 0
    """KV room that a session reserves at least: recurrent states are counted in it."""

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
    (DeviceState.FAILED, Signal.MEASURED): DeviceState.FREE,
}


class Slice(NamedTuple):
    """Some layers of a model."""

    manifest_hash: str
    layers: LayerRange


class Fetched(NamedTuple):
    """A slice that is on a device's disk, but for so many bytes."""

    slice: Slice
    lacking_bytes: float = 0.0


MOST_REMEMBERED = 4
"""Slices that a device had on its disk before the last one. Nodes keep what they have downloaded of a model for as long
as there is room."""


@dataclass(slots=True)
class Progress:
    """How far a device is with what it was told to do (deadlines.py)."""

    grew_at_s: float = 0.0
    """When it got any further, or was told."""
    is_loading: bool = False
    """All is on its disk."""
    done_bytes: int = 0
    first: tuple[float, int] | None = None
    """When it first said how many bytes of its download it has, and how many."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a device is expected to be busy with: decode rows and prompt tokens per second."""

    rows_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0


IDLE = Load()


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
    lacking_bytes: float = 0.0
    """What is still to come of that, as far as is known."""
    earlier: tuple[Fetched, ...] = ()
    """What it had been assigned before, newest first."""
    num_kv_tokens: int = 0
    num_reserved_tokens: int = 0
    num_hidden_tokens: int = 0
    """KV room that is taken there though nothing here says so: it was found full (dispatcher.py)."""
    is_lowered: bool = False
    """It has less KV room than when it was loaded: what had been reserved then may be more than there is now."""
    num_requests: int = 0
    num_failures: int = 0
    retry_at_s: float = 0.0
    slowdown: float = 1.0
    """How much longer its live work takes than its benchmark said (1: as measured)."""
    has_prefix_cache: bool = False
    """Whether prompts that begin like an earlier one are cheaper here."""
    load: Load = IDLE
    """What the requests that run over it are expected to give it to do: the router keeps it."""
    suspicion: float = 0.0
    """How often chains broke at it, as of `suspected_at_s`; halves every 30 s (candidates.py)."""
    suspected_at_s: float = 0.0
    progress: Progress = field(default_factory=Progress)
    is_overdue: bool = False
    """It failed because nothing was heard of what it was to do; its answer may yet come."""
    reason: str = ""
    """Why it holds what it holds, or why it stands by: one line for people."""
    leaves_per_s: float = 0.0
    """The rate at which its node has been leaving (departed.py)."""
    probation_until_s: float = 0.0
    """It has come back too often: till then it holds only what is missing otherwise."""
    assigned_at_s: float = 0.0
    num_fetched_bytes: float = 0.0
    """What it had to download for the slice that it was assigned last."""
    fetch_bytes_per_s: float | None = None
    """How fast its last slices came; None while unknown."""
    disk_layers: Mapping[str, int] = field(default_factory=dict)
    """By model: so many layers its disk has room for, where that is known because more did not fit (disk_limits.py)."""
    offer: tuple[tuple[object, ...], object] | None = field(default=None, repr=False, compare=False)
    """What phase 1 saw of it last, and of what that was made (problems.py): most devices do not change."""
    table: DeviceTable | None = field(default=None, repr=False, compare=False)
    """Where it is listed by its state."""

    def move(self, signal: Signal) -> None:
        """Take the transition; KeyError for one that the table does not have (a defect of ours)."""
        before, self.state = self.state, TRANSITIONS[self.state, signal]
        if self.table is not None:
            self.table.moved(self, before)

    def measure(self, manifest_hash: str, now_s: float) -> None:
        """It is to measure this model."""
        self.measuring, self.progress, self.is_overdue = manifest_hash, Progress(now_s), False
        self.move(Signal.MEASURE)

    def assign(self, held: Slice, reason: str, now_s: float) -> None:
        """It is to load this: a new generation, whose KV room is not known yet."""
        self._remember(held)
        self.model, self.layers = held
        self.last, self.reason, self.assigned_at_s = held, reason, now_s
        self.progress, self.is_overdue = Progress(now_s), False
        self.generation += 1
        self.num_kv_tokens = self.num_hidden_tokens = 0
        self.is_lowered = False
        self.move(Signal.ASSIGN)

    def _remember(self, newest: Slice) -> None:
        """What it was assigned last stays on its disk."""
        if self.last is not None and self.last != newest:
            others = [f for f in self.earlier if f.slice not in (self.last, newest)]
            self.earlier = (Fetched(self.last, self.lacking_bytes), *others)[:MOST_REMEMBERED]

    def let_go(self, signal: Signal) -> None:
        """It holds nothing any more: released, or failed."""
        self.model = self.layers = None
        self.move(signal)

    @property
    def num_free_kv_tokens(self) -> int:
        """Negative where more is taken than there is."""
        return self.num_kv_tokens - self.num_reserved_tokens - self.num_hidden_tokens

    def max_layers(self, model: str) -> int | None:
        """What its owner and its disk allow; None: any number."""
        limits = [limit for limit in (self.spec.max_layers, self.disk_layers.get(model)) if limit is not None]
        return min(limits, default=None)

    def layer_time_s(self, model: str) -> float:
        """Measured decode time of one layer at batch 1; never zero, so that it can divide."""
        return max(self.benchmarks[model].decode[0].layer_s, 1e-9)


HOLDING = (DeviceState.ASSIGNED, DeviceState.READY)


class DeviceTable(dict[DeviceKey, Device]):
    """All devices by key, and lists of them by state and by the model that they hold.

    The lists are kept as devices come, move and go, so that nobody has to look through ten thousand to find three."""

    def __init__(self, devices: Mapping[DeviceKey, Device] | None = None) -> None:
        super().__init__()
        self._by_state: dict[DeviceState, dict[DeviceKey, Device]] = {state: {} for state in DeviceState}
        self._by_model: dict[str, dict[DeviceKey, Device]] = {}
        self._model_of: dict[DeviceKey, str] = {}
        self._by_node: dict[NodeId, dict[DeviceKey, Device]] = {}
        self.num_changes = 0
        """Grows with every change of a device's state, so that whoever has seen this one need not look again."""
        self.update(devices or {})

    def in_state(self, state: DeviceState) -> Collection[Device]:
        return self._by_state[state].values()

    def holding(self, model: str) -> Collection[Device]:
        """Devices that hold or load layers of the model."""
        return self._by_model.get(model, {}).values()

    def of_node(self, node_id: NodeId) -> list[Device]:
        return list(self._by_node.get(node_id, {}).values())

    @property
    def nodes(self) -> Collection[NodeId]:
        """All that have a device here."""
        return self._by_node.keys()

    def moved(self, device: Device, before: DeviceState) -> None:
        """Its state is another now."""
        self._by_state[before].pop(device.key, None)
        self._list(device)

    def __setitem__(self, key: DeviceKey, device: Device) -> None:
        if key in self:
            del self[key]
        super().__setitem__(key, device)
        self._by_node.setdefault(key.node_id, {})[key] = device
        device.table = self
        self._list(device)

    def __delitem__(self, key: DeviceKey) -> None:
        device = self[key]
        super().__delitem__(key)
        del self._by_node[key.node_id][key]
        if not self._by_node[key.node_id]:
            del self._by_node[key.node_id]
        device.table = None
        self._by_state[device.state].pop(key, None)
        self._unlist_holder(key)
        self.num_changes += 1

    def update(self, devices: Mapping[DeviceKey, Device]) -> None:  # type: ignore[override]
        for key, device in devices.items():
            self[key] = device

    def __ior__(self, devices: Mapping[DeviceKey, Device]) -> Self:  # type: ignore[override,misc]
        self.update(devices)
        return self

    def _list(self, device: Device) -> None:
        self.num_changes += 1
        self._by_state[device.state][device.key] = device
        self._unlist_holder(device.key)
        if device.state in HOLDING and device.model is not None:
            self._model_of[device.key] = device.model
            self._by_model.setdefault(device.model, {})[device.key] = device

    def _unlist_holder(self, key: DeviceKey) -> None:
        model = self._model_of.pop(key, None)
        if model is not None:
            del self._by_model[model][key]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without a chain: RequestArrived, and until when it waits."""

    session_id: SessionId
    manifest_hash: str
    num_tokens: int
    resumed: bool
    avoid: frozenset[DeviceKey]
    give_up_at_s: float
    num_prompt_tokens: int = 0
    tenant: str = ""
    affinity: tuple[int, ...] = ()
    deadline_at_s: float | None = None
    """After this the answer is wanted no more."""
    return_at_s: float = 0.0
    """Before this it goes to none of the devices to avoid."""


@dataclass(frozen=True, slots=True)
class Running:
    """A request on its chain, and what it was counted with at each of its devices."""

    manifest_hash: str
    devices: tuple[DeviceKey, ...]
    num_tokens: int
    since_s: float
    load: Load = IDLE
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays reserved for a session that has lost its chain, at the devices that still hold its KV."""

    devices: tuple[DeviceKey, ...]
    num_tokens: int
    until_s: float = math.inf


@dataclass(slots=True)
class State:
    models: dict[str, ModelFacts] = field(default_factory=dict)
    devices: DeviceTable = field(default_factory=DeviceTable)
    waiting: dict[SessionId, Waiting] = field(default_factory=dict)
    running: dict[SessionId, Running] = field(default_factory=dict)
    kept: dict[SessionId, Kept] = field(default_factory=dict)
    """Of sessions that do not run now: they have lost their chain, and most of them wait for another one."""
    hedges: dict[SessionId, Running] = field(default_factory=dict)
    """Second chains, beside those of `running` or, for a moment, of requests that have just lost their own."""
    draining: set[NodeId] = field(default_factory=set)
    """Nodes that finish what runs on them and get nothing new. One that left and comes back is still one of them."""
    links: LinkMap = field(default_factory=LinkMap)
    floors: dict[str, int] = field(default_factory=dict)
    """The operator's floor of replicas per model."""
    retiring: set[DeviceKey] = field(default_factory=set)
    """Devices that will hold something else as soon as nothing runs over them: nothing new is to start there."""

    def in_state(self, *states: DeviceState) -> list[Device]:
        return [device for state in dict.fromkeys(states) for device in self.devices.in_state(state)]

    def usable(self, *states: DeviceState) -> list[Device]:
        """Devices in one of these states, of nodes that are not draining: what anything new may be planned with."""
        return [device for device in self.in_state(*states) if device.key.node_id not in self.draining]

    def holders(self, model: str) -> list[Device]:
        """Devices that hold or load layers of the model, for whatever comes next: without those that drain."""
        return [d for d in self.devices.holding(model) if d.key.node_id not in self.draining]
