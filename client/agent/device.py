"""One device's way from a fresh worker to serving a slice. States and transitions as a table; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from protocol.messages import AssignSlice, MeasureDevice
from protocol.values import DeviceSpec, LayerBenchmark, LayerRange, Variant

Job = MeasureDevice | AssignSlice


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
    """The worker has ended; it is started again after a while."""


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
    owed: int = 0
    slice_numel: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    num_crashes: int = 0
    message: str = ""

    def move(self, step: Step) -> None:
        """Take the transition; KeyError for one that the table does not have (a defect of ours)."""
        self.stage = TRANSITIONS[self.stage, step]

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
