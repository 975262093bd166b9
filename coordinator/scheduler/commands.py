"""What the scheduler wants done."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.scheduler.state import DeviceKey
from protocol.values import LayerRange, NodeId, SessionId, Variant


@dataclass(frozen=True, slots=True)
class Measure:
    device: DeviceKey
    manifest_hash: str
    variant: Variant


@dataclass(frozen=True, slots=True)
class MeasureLinks:
    """This node measures its links to these others."""

    node_id: NodeId
    targets: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Assign:
    device: DeviceKey
    generation: int
    manifest_hash: str
    variant: Variant
    layers: LayerRange
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    device: DeviceKey
    generation: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing has been heard of what the device was to do: it is not waited for any more, and tried again later.
    `generation` 0: it was to measure."""

    device: DeviceKey
    generation: int
    message: str


@dataclass(frozen=True, slots=True)
class ChainStage:
    """`has_prefix_cache`: what sessions leave there may be the beginning of others."""

    device: DeviceKey
    generation: int
    layers: LayerRange
    has_prefix_cache: bool = False


@dataclass(frozen=True, slots=True)
class StartChain:
    """The request runs over these stages, head first; together they hold every layer exactly once."""

    session_id: SessionId
    chain: tuple[ChainStage, ...]


@dataclass(frozen=True, slots=True)
class StartHedge:
    """The running request may have this chain beside its own; `ttft_s` is forecast until its first token."""

    session_id: SessionId
    chain: tuple[ChainStage, ...]
    ttft_s: float


@dataclass(frozen=True, slots=True)
class RefuseRequest:
    """The pool cannot serve the request, or not any more. `retry_after_s` is None when waiting would not help."""

    session_id: SessionId
    code: str
    message: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class LetGo:
    """The request has waited for so long that what devices keep for it is wanted by others."""

    session_id: SessionId


Command = Measure | MeasureLinks | Assign | Release | GiveUp | StartChain | StartHedge | LetGo | RefuseRequest
