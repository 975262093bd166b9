"""What the pool knows of each connected node, for people and for its neighbours."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from coordinator.deadlines import StepTimes
from coordinator.scheduler.commands import Assign, Measure
from coordinator.scheduler.state import Device
from protocol import RECOVERY_VERSION
from protocol.messages import Heartbeat, Hello, ReleaseSlice, SliceProgress
from protocol.values import DeviceId, DeviceSpec, DeviceWork, NodeId

SPEED_WINDOW_S = 10.0
"""Tokens per second are counted over about this time."""
MAX_BEATS = 32
"""Heartbeats kept of a node that sends more of them than it should."""


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
    steps: StepTimes = field(default_factory=StepTimes)
    """What its steps took on average between two heartbeats, with the slice that it has now."""
    decode_steps: StepTimes = field(default_factory=StepTimes)
    """The same of those times in which it computed no prompt."""
    can_truncate: bool = False

    def measure(self, command: Measure) -> None:
        self.activity, self.manifest_hash = DeviceActivity.MEASURING, command.manifest_hash

    def assign(self, command: Assign) -> None:
        self.activity, self.manifest_hash = DeviceActivity.DOWNLOADING, command.manifest_hash
        self.layers, self.reason = str(command.layers), command.reason
        self.done_bytes = self.total_bytes = 0
        self.steps, self.decode_steps = StepTimes(), StepTimes()

    def worked(self, work: DeviceWork) -> None:
        """It has done steps since its last heartbeat."""
        if not work.num_steps:
            return
        self.steps.add(work.compute_s / work.num_steps)
        if not work.num_prompt_tokens:
            self.decode_steps.add(work.compute_s / work.num_steps)

    def slowest_step_s(self, *, with_prompts: bool) -> float:
        """The 99th percentile. One long prompt must not make a device that decodes look slow for minutes: a worker
        that hangs would be given as long as a prompt takes."""
        is_known = bool(len(self.decode_steps))
        return self.steps.p99_s if with_prompts or not is_known else self.decode_steps.p99_s

    def progress(self, message: SliceProgress) -> None:
        self.activity = DeviceActivity.LOADING if message.loading else DeviceActivity.DOWNLOADING
        self.done_bytes, self.total_bytes = message.done_bytes, message.total_bytes

    def hold(self, device: Device, *, can_truncate: bool) -> None:
        """It came with these layers loaded."""
        self.manifest_hash, self.layers, self.reason = device.model or "", str(device.layers), device.reason
        self.serve(can_truncate=can_truncate)

    def serve(self, *, can_truncate: bool) -> None:
        self.activity, self.can_truncate = DeviceActivity.SERVING, can_truncate

    def idle(self) -> None:
        self.activity, self.layers, self.reason = DeviceActivity.IDLE, "", ""

    def fail(self, message: str) -> None:
        self.activity, self.layers, self.reason = DeviceActivity.FAILED, "", message


@dataclass(slots=True)
class NodeView:
    """A connected node. `num_faults` counts what it sent that was refused; the other counts are its own."""

    hello: Hello
    heard_at_s: float
    is_draining: bool = False
    is_leaving: bool = False
    """It has said that it will go: it gets nothing new, and its sessions move elsewhere as long as it stays."""
    leaves_at_s: float = math.inf
    """It is gone by then."""
    drains_anyway: bool = False
    """The operator wants it drained, whether it leaves or not."""
    devices: dict[DeviceId, DeviceView] = field(init=False)
    num_faults: int = 0
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    """That it has computed here, those after a change of the chain included."""
    num_sessions: int = 0
    pool_rtt_s: float | None = None
    """A round trip between the node and the coordinator, as it measured last."""
    asked_links: frozenset[NodeId] = frozenset()
    """The nodes to which it is to measure its links."""
    _beats: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_BEATS))
    """When, and how many tokens by then: the last SPEED_WINDOW_S and one before."""

    def __post_init__(self) -> None:
        self.devices = {spec.device_id: DeviceView(spec) for spec in self.hello.devices}

    @property
    def can_recover(self) -> bool:
        """Whether it speaks a version that keeps KV over epochs and says where rows are."""
        return self.hello.protocol_version >= RECOVERY_VERSION

    @property
    def tokens_per_s(self) -> float:
        """The work of the last seconds; 0 before the second heartbeat."""
        if len(self._beats) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._beats[0], self._beats[-1]
        return max(0, last - first) / (last_s - first_s) if last_s > first_s else 0.0

    def beat(self, message: Heartbeat, now_s: float) -> None:
        """The node has said how it is doing."""
        self.num_sessions, self.num_tokens = message.num_sessions, message.num_tokens
        self.num_prompt_tokens += sum(work.num_prompt_tokens for work in message.work)
        self.hear_pool_rtt(message.pool_rtt_s)
        self._beats.append((now_s, message.num_tokens))
        while len(self._beats) > 2 and self._beats[1][0] <= now_s - SPEED_WINDOW_S:
            self._beats.popleft()

    def hear_pool_rtt(self, pool_rtt_s: float | None) -> None:
        """The node has measured the way to the coordinator; None: not since it told last."""
        if pool_rtt_s is not None:
            self.pool_rtt_s = pool_rtt_s

    def hold(self, ready: Iterable[Device]) -> list[ReleaseSlice]:
        """It came with these devices ready. What it holds beside them is not wanted: it is told so."""
        used = {device.key.device_id: device for device in ready}
        can_truncate = {held.device_id: held.can_truncate for held in self.hello.held}
        for device_id, device in used.items():
            self.devices[device_id].hold(device, can_truncate=can_truncate[device_id])
        unused = [held for held in self.hello.held if held.device_id not in used]
        return [ReleaseSlice(held.device_id, held.generation) for held in unused]

    def drop_measuring(self, manifest_hash: str) -> None:
        """Nobody waits for measurements of this model any more."""
        for device in self.devices.values():
            if device.activity is DeviceActivity.MEASURING and device.manifest_hash == manifest_hash:
                device.idle()
