"""What phase 1 is asked and what it answers: values, and the interface that every allocator has.

A lane is a pipeline whose stages may have several holders each: replicas are counted per stage, not per model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.scheduler.cost import MIN_KV_TOKENS, Bound, ModelCost, Speed, Workload
from coordinator.scheduler.links import LinkMap
from coordinator.scheduler.state import DeviceKey
from protocol.values import LayerRange


@dataclass(frozen=True, slots=True)
class Offer:
    """A device as phase 1 sees it, for one model.

    `memory_bytes` is for weights and KV. `held` is what it holds or loads now (None: it is free); `stored` are slices
    whose weights are on its disk, the one that it had last first. `leaves_per_s` is its churn: the rate at which it has
    been leaving."""

    key: DeviceKey
    memory_bytes: float
    max_layers: int
    speed: Speed
    held: LayerRange | None = None
    stored: tuple[LayerRange, ...] = ()
    leaves_per_s: float = 0.0
    is_busy: bool = False
    """Requests run over it now."""
    is_loading: bool = False
    """It does not serve what it holds yet."""
    lacking_bytes: float = 0.0
    """While it loads: what it still lacks of `held`, as far as is known."""
    fetch_bytes_per_s: float | None = None
    """How fast its last slices came; None while unknown."""
    partly: tuple[tuple[LayerRange, float], ...] = ()
    """Layers of which so many bytes are not on its disk: downloads that were not finished."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One model in one variant, and all devices that may hold layers of it."""

    model: ModelCost
    offers: tuple[Offer, ...]
    links: LinkMap
    workload: Workload = Workload()
    bound: Bound = Bound()
    min_kv_tokens: int = MIN_KV_TOKENS
    """KV room that every slice must leave (or the model's context length, if that is less)."""
    has_served: bool = False
    """A whole chain has been ready at some time: if there is none now, people wait."""
    budget: int = 1_000
    """Plans that the local search may try: work instead of time, so that the same problem has the same answer."""

    @property
    def kv_floor_tokens(self) -> int:
        return min(self.min_kv_tokens, self.model.facts.context_length)


@dataclass(frozen=True, slots=True)
class Stage:
    """Some layers and who holds them: indices into the problem's offers."""

    layers: LayerRange
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lane:
    """Stages from layer 0 to the last one, without gap or overlap."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a lane, or a whole layout, is expected to do.

    `tpot_s` and `ttft_s` with one request alone; `tokens_per_s` is the most within the latency bound; `num_sessions`
    is the KV room at the workload's reservation."""

    tpot_s: float
    ttft_s: float
    tokens_per_s: float
    num_sessions: int


@dataclass(frozen=True, slots=True)
class Placement:
    """A device takes these layers, for this reason (one line for people)."""

    key: DeviceKey
    layers: LayerRange
    reason: str


class Allocator(Protocol):
    """Phase 1. Pure: the same problem has the same answer."""

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        """From scratch: whatever is held counts for nothing. Devices without a placement stay free."""

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        """Something changed (a device is free, a slice is gone): what to change now, and nothing that works already.

        Placements for free devices, and for holders that are to hold something else."""
