"""What the pool knows of each connected node, for people and for its neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.scheduler.commands import Assign, Measure
from protocol.messages import Hello, SliceProgress
from protocol.values import DeviceId, DeviceSpec


class DeviceActivity(StrEnum):
    IDLE = "idle"
    MEASURING = "measuring"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"


@dataclass(slots=True)
class DeviceView:
    """One device as the pool page shows it."""

    spec: DeviceSpec
    activity: DeviceActivity = DeviceActivity.IDLE
    manifest_hash: str = ""
    layers: str = ""
    reason: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    def measure(self, command: Measure) -> None:
        self.activity, self.manifest_hash = DeviceActivity.MEASURING, command.manifest_hash

    def assign(self, command: Assign) -> None:
        self.activity, self.manifest_hash = DeviceActivity.DOWNLOADING, command.manifest_hash
        self.layers, self.reason = str(command.layers), command.reason
        self.done_bytes = self.total_bytes = 0

    def progress(self, message: SliceProgress) -> None:
        self.activity = DeviceActivity.LOADING if message.loading else DeviceActivity.DOWNLOADING
        self.done_bytes, self.total_bytes = message.done_bytes, message.total_bytes

    def serve(self) -> None:
        self.activity = DeviceActivity.SERVING

    def idle(self) -> None:
        self.activity, self.layers, self.reason = DeviceActivity.IDLE, "", ""

    def fail(self, message: str) -> None:
        self.activity, self.layers, self.reason = DeviceActivity.FAILED, "", message


@dataclass(slots=True)
class NodeView:
    """A connected node. `num_faults` counts what it sent that was refused."""

    hello: Hello
    heard_at_s: float
    devices: dict[DeviceId, DeviceView] = field(init=False)
    num_faults: int = 0
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.devices = {spec.device_id: DeviceView(spec) for spec in self.hello.devices}
