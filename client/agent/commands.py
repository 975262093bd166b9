"""What the agent's core wants done."""

from __future__ import annotations

from dataclasses import dataclass

from client import ipc
from client.agent.device import Job
from protocol import messages as msg
from protocol.manifest import Manifest
from protocol.values import DeviceId, Hop


@dataclass(frozen=True, slots=True)
class TellPool:
    message: msg.NodeMessage


@dataclass(frozen=True, slots=True)
class TellWorker:
    device_id: DeviceId
    message: ipc.AgentMessage


@dataclass(frozen=True, slots=True)
class PassFrame:
    """A checked frame for a worker."""

    device_id: DeviceId
    frame: bytes


@dataclass(frozen=True, slots=True)
class StartWorker:
    device_id: DeviceId
    delay_s: float


@dataclass(frozen=True, slots=True)
class EndWorker:
    """Kill it, and with it all that it holds; `reason` is for people. It is started again as after a crash."""

    device_id: DeviceId
    reason: str


@dataclass(frozen=True, slots=True)
class FetchManifest:
    device_id: DeviceId
    job: Job


@dataclass(frozen=True, slots=True)
class Download:
    device_id: DeviceId
    job: Job
    manifest: Manifest
    tensor_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopDownload:
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class MeasureLinks:
    """Measure the ways to these nodes and tell the pool; what is still measured of an older list is given up."""

    targets: tuple[Hop, ...]


Command = (
    TellPool | TellWorker | PassFrame | StartWorker | EndWorker | FetchManifest | Download | StopDownload | MeasureLinks
)
