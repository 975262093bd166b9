"""One device's way from a fresh worker to serving a slice. States and transitions as a table; pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto

from client.ipc import MAX_SENT_BYTES
from protocol.backoff import doubled_s
from protocol.messages import AssignSlice, MeasureDevice
from protocol.quantisation import NOTHING, Packed
from protocol.values import KV_BLOCK_TOKENS, DeviceSpec, LayerBenchmark, LayerRange, Variant

Job = MeasureDevice | AssignSlice
RESTART_BASE_S = 1.0
MAX_RESTART_S = 300.0
SETTLED_S = 60.0
"""A worker that has served for so long, and has had something to do, is well: its end is the first again."""
NOTICE_S = 600.0
"""For so long people are told that a worker did not answer."""
DID_NOT_ANSWER = "The worker did not answer"
RAN_OUT_OF_MEMORY = "The worker ran out of the device's memory three times in a row"
SENT_SHARE = 0.04
"""Of the memory that a device may use, for rows that it has sent and keeps. It is of the share that is left for
activations (MEMORY_FOR_ACTIVATIONS), so that all together stays within what the volunteer offers."""
_NOTICES = {
    DID_NOT_ANSWER: f"{DID_NOT_ANSWER} and was restarted.",
    RAN_OUT_OF_MEMORY: f"{RAN_OUT_OF_MEMORY} and was restarted. If that goes on, offer less memory in the settings.",
}
"""What people are told for a while of a worker that was ended for this reason."""


class Stage(Enum):
    STARTING = auto()
    """The worker process starts and imports torch."""
    IDLE = auto()
    MEASURING = auto()
    FETCHING = auto()
    """The model's manifest is on its way."""
    PLANNING = auto()
    """The worker says which tensors the layers need."""
    DOWNLOADING = auto()
    LOADING = auto()
    SERVING = auto()
    DEAD = auto()
    """The worker has ended, or hangs and is being ended; it is started again after a while."""


class Step(Enum):
    WORKER_UP = auto()
    WORKER_DOWN = auto()
    RESTART = auto()
    TAKE_JOB = auto()
    MEASURE = auto()
    PLAN = auto()
    DOWNLOAD = auto()
    LOAD = auto()
    SERVE = auto()
    DONE = auto()


_AWAKE = (
    Stage.IDLE,
    Stage.MEASURING,
    Stage.FETCHING,
    Stage.PLANNING,
    Stage.DOWNLOADING,
    Stage.LOADING,
    Stage.SERVING,
)

TRANSITIONS: dict[tuple[Stage, Step], Stage] = {
    (Stage.STARTING, Step.WORKER_UP): Stage.IDLE,
    (Stage.STARTING, Step.WORKER_DOWN): Stage.DEAD,
    (Stage.DEAD, Step.RESTART): Stage.STARTING,
    (Stage.FETCHING, Step.MEASURE): Stage.MEASURING,
    (Stage.FETCHING, Step.PLAN): Stage.PLANNING,
    (Stage.FETCHING, Step.SERVE): Stage.SERVING,
    (Stage.PLANNING, Step.DOWNLOAD): Stage.DOWNLOADING,
    (Stage.DOWNLOADING, Step.LOAD): Stage.LOADING,
    (Stage.LOADING, Step.SERVE): Stage.SERVING,
    **{(stage, Step.WORKER_DOWN): Stage.DEAD for stage in _AWAKE},
    **{(stage, Step.TAKE_JOB): Stage.FETCHING for stage in _AWAKE},
    **{(stage, Step.DONE): Stage.IDLE for stage in _AWAKE},
}
"""A newer job replaces an older one at any point; what the worker still answers to the older one is dropped."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the worker holds in memory."""

    manifest_hash: str
    variant: Variant
    layers: LayerRange
    num_kv_tokens: int
    can_truncate: bool
    has_prefix_cache: bool = False


@dataclass(slots=True)
class Device:
    """A device and its worker. `owed` counts answers that the worker still owes to commands of replaced jobs."""

    spec: DeviceSpec
    stage: Stage = Stage.STARTING
    job: Job | None = None
    loaded: Loaded | None = None
    loaded_as: DeviceSpec | None = None
    """What the device offered when that was loaded."""
    benchmarks: dict[str, LayerBenchmark] = field(default_factory=dict)
    """What it measured, by the model's manifest."""
    room_shares: dict[tuple[str, Variant, LayerRange], float] = field(default_factory=dict)
    """Of slices with which it ran out of memory."""
    owed: int = 0
    slice_numel: int = 0
    packed: Packed = NOTHING
    """What of the slice is in fewer bits."""
    done_bytes: int = 0
    total_bytes: int = 0
    num_crashes: int = 0
    """Ends of its worker since it was last seen to be well for a while."""
    loaded_at_s: float = 0.0
    message: str = ""
    notice: str = ""
    """What happened a while ago and is over, for people; until `notice_until_s`."""
    notice_until_s: float = 0.0

    def move(self, step: Step) -> None:
        """Take the transition; KeyError for one that the table does not have (a defect of ours)."""
        self.stage = TRANSITIONS[self.stage, step]

    def lower_room(self, num_used_tokens: int) -> Loaded:
        """With so much of its KV room in use there was no memory: what it offers of it from now on, and after it was
        loaded anew. At most a half less at a time, as another program's moment may be the cause."""
        held = self.loaded
        assert held is not None, "who lacks memory holds something"
        wanted = max(held.num_kv_tokens // 2, 3 * min(num_used_tokens, held.num_kv_tokens) // 4)
        num_tokens = max(1, wanted // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
        key = (held.manifest_hash, held.variant, held.layers)
        self.room_shares[key] = self.room_share(*key) * min(1.0, num_tokens / held.num_kv_tokens)
        self.loaded = replace(held, num_kv_tokens=min(num_tokens, held.num_kv_tokens))
        return self.loaded

    def room_share(self, manifest_hash: str, variant: Variant, layers: LayerRange) -> float:
        """How much of the KV room that there might be a slice is given."""
        return self.room_shares.get((manifest_hash, variant, layers), 1.0)

    def count_crash(self, reason: str, now_s: float) -> float:
        """Its worker has ended; after how long to start the next one, in seconds."""
        if reason in _NOTICES:
            self.notice, self.notice_until_s = _NOTICES[reason], now_s + NOTICE_S
        self.num_crashes += 1
        return doubled_s(RESTART_BASE_S, self.num_crashes - 1, MAX_RESTART_S)

    def pass_time(self, has_worked: bool, now_s: float) -> None:
        """What is forgotten in time. `has_worked`: something has come out of the layers that it serves."""
        if self.stage is Stage.SERVING and has_worked and now_s >= self.loaded_at_s + SETTLED_S:
            self.num_crashes = 0
        if now_s >= self.notice_until_s:
            self.notice = ""

    def validate(self) -> None:
        """What must hold between events (AssertionError)."""
        has_worker = self.stage in _AWAKE
        assert (self.job is not None) == (has_worker and self.stage is not Stage.IDLE), f"{self.stage} with {self.job}"
        assert has_worker or (self.loaded is None and self.owed == 0), "what a worker held or owed is gone with it"
        assert self.owed >= 0, "a worker owes no fewer than no answers"
        assert self.stage is not Stage.LOADING or self.loaded is None, "loading replaces what was loaded"
        if self.stage is Stage.SERVING:
            job, held = self.job, self.loaded
            assert isinstance(job, AssignSlice), "only an assigned device serves"
            assert held is not None, "a device serves what its worker holds"
            wanted = (job.manifest_hash, job.variant, job.layers)
            assert (held.manifest_hash, held.variant, held.layers) == wanted, "it serves what it was assigned"

    @property
    def generation(self) -> int:
        """Of the current assignment; 0 while measuring or idle."""
        return self.job.generation if isinstance(self.job, AssignSlice) else 0


def sent_bytes(spec: DeviceSpec) -> int:
    """How much of the host's memory the device's worker may use for rows that it has sent."""
    return min(MAX_SENT_BYTES, int(SENT_SHARE * spec.memory_bytes))
