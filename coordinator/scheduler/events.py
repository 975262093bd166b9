"""What the scheduler is told. Time comes beside each event, never inside."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol.values import DeviceSpec, HeldSlice, LayerBenchmark, NodeId, SessionId


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """`num_replicas` is the operator's floor: as many whole copies come before anything another model might want."""

    model: ModelFacts
    num_replicas: int = 1


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
    """Measuring or serving failed. `generation` 0 means measuring. `max_layers`: the slice did not fit on its disk, so
    many of its layers would; None: something else."""

    device: DeviceKey
    generation: int
    max_layers: int | None = None


@dataclass(frozen=True, slots=True)
class SliceProgress:
    """A device that is to load a slice has so many of its bytes on its disk (`loading`: in its memory), of so many."""

    device: DeviceKey
    generation: int
    loading: bool
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class SliceReady:
    device: DeviceKey
    generation: int
    num_kv_tokens: int
    has_prefix_cache: bool = False


@dataclass(frozen=True, slots=True)
class StepsSeen:
    """Live work of a slice since the last report: forwards, the decode rows and prompt tokens in them, their time."""

    device: DeviceKey
    generation: int
    num_steps: int
    num_decode_rows: int
    num_prompt_tokens: int
    compute_s: float


@dataclass(frozen=True, slots=True)
class LinksSeen:
    """Nodes have measured links. `pool_rtts_s`: round trips between nodes and the coordinator."""

    links: tuple[LinkSeen, ...] = ()
    pool_rtts_s: tuple[tuple[NodeId, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceBroke:
    """A chain broke at this device though the device itself goes on: it is trusted less for a while.

    `weight` is what that counts: so much times its cost is added for new requests; it halves every 30 s."""

    device: DeviceKey
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class DeviceFull:
    """It has less KV room than is known here: nothing new starts there for a moment."""

    device: DeviceKey


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request wants a chain: a new one, or a running one that lost its own (`resumed`, which may wait longer).

    `num_tokens` is the KV room it reserves: prompt and the most that it may answer. `tenant` is who asks (fairness is
    between tenants). `affinity` are running hashes of the prompt's blocks, longest prefix last: chains that have seen
    them may have them cached. `deadline_s`: after so long in the queue the answer is wanted no more. `kept`: devices
    that still hold the session's KV and its reservation. `return_after_s`: before that the devices to avoid are not
    tried even if there are no others."""

    session_id: SessionId
    manifest_hash: str
    num_tokens: int
    resumed: bool = False
    avoid: frozenset[DeviceKey] = frozenset()
    num_prompt_tokens: int = 0
    tenant: str = ""
    affinity: tuple[int, ...] = ()
    deadline_s: float | None = None
    kept: tuple[DeviceKey, ...] = ()
    return_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MoveWanted:
    """A running request had better run elsewhere, as a node of its chain wants to go: another chain if there is one
    now, else it stays where it is."""

    request: RequestArrived


@dataclass(frozen=True, slots=True)
class HedgeWanted:
    """A running request is slow, or a node of its chain wants to go: a second chain on other nodes if there is room for
    one now that is expected to be no slower than this (time to the first token, time per token).

    `has_to_move`: no node of its chain stays; it will compute its log elsewhere in any case, so that a second chain
    makes the pool no fuller."""

    request: RequestArrived
    ttft_limit_s: float
    tpot_limit_s: float
    has_to_move: bool = False


@dataclass(frozen=True, slots=True)
class HedgeEnded:
    """The request has one chain again: the second one if that has won. Harmless if there was none."""

    session_id: SessionId
    has_won: bool


@dataclass(frozen=True, slots=True)
class HedgeTakesOver:
    """The request's chain is lost, or left: it goes on over the second one, in a new epoch. If that is lost as well it
    comes back as any other."""

    request: RequestArrived


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The request needs its chain no more, however it ended. Harmless when it has none."""

    session_id: SessionId
    num_answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Replan:
    """Plan everything anew now and move to it, whatever that costs: the operator's word, or a benchmark's start."""


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
    | SliceProgress
    | SliceReady
    | StepsSeen
    | LinksSeen
    | DeviceBroke
    | DeviceFull
    | RequestArrived
    | MoveWanted
    | HedgeWanted
    | HedgeEnded
    | HedgeTakesOver
    | RequestFinished
    | Replan
    | TimePassed
)
