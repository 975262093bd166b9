"""What the agent's core is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from client import ipc
from client.agent.device import Job
from protocol import messages as msg
from protocol.manifest import Manifest
from protocol.values import DeviceId, NodeId


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    device_id: DeviceId
    message: ipc.WorkerMessage


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker ended by itself, was ended (`reason` says why) or could not be started (`reason` too)."""

    device_id: DeviceId
    status: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RestartDue:
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class LookedAtWorkers:
    """About every second (watchdog.LOOK_S); what doubted workers have used of the processor, None if not known."""

    cpu_s: Mapping[DeviceId, float | None]


@dataclass(frozen=True, slots=True)
class PoolSaid:
    message: msg.CoordinatorMessage


@dataclass(frozen=True, slots=True)
class PoolLost:
    """The connection to the coordinator is gone: what runs here is nobody's any more."""


@dataclass(frozen=True, slots=True)
class KeptTooLong:
    """The pool has not come back for so long that its layers need not be kept (holding.KEEP_S)."""


@dataclass(frozen=True, slots=True)
class ManifestArrived:
    manifest_hash: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A manifest or weights could not be had. `share`: what part of them the disk has room for, if it was that."""

    device_id: DeviceId
    job: Job
    code: str
    message: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """More of the weights are there; `folder` is set when all are."""

    device_id: DeviceId
    job: Job
    done_bytes: int
    total_bytes: int
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A data frame from a neighbour, or (sender None) through the coordinator."""

    data: bytes
    sender: NodeId | None


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The direct link to a neighbour broke with rows on it."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class RowsRefused:
    """More rows wait than may: these were not taken. `is_leaving`: they were on the way out of this node."""

    data: bytes
    is_leaving: bool


Event = (
    WorkerSaid
    | WorkerDied
    | RestartDue
    | LookedAtWorkers
    | PoolSaid
    | PoolLost
    | KeptTooLong
    | ManifestArrived
    | FetchFailed
    | Downloaded
    | FrameArrived
    | PeerLost
    | RowsRefused
)
