"""The two phases as one exchangeable thing: ours, and in benchmarks those of other systems.

Everything else (states, staging, queue, KV reservation) is the same for all, so that a comparison compares policies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.scheduler.cost import Bound
from coordinator.scheduler.plan import Allocator
from coordinator.scheduler.state import Device, DeviceKey, State
from protocol.values import SessionId, Variant


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """A request as phase 2 sees it. `num_reserved_tokens` must be free in the KV room of each stage."""

    session_id: SessionId
    manifest_hash: str
    num_prompt_tokens: int
    num_new_tokens: int
    num_reserved_tokens: int
    avoid: frozenset[DeviceKey] = frozenset()
    affinity: tuple[int, ...] = ()
    apart_from: frozenset[DeviceKey] = frozenset()
    """Where the same tenant's other requests run: better elsewhere, if diversity is wanted and there is elsewhere."""
    kept: frozenset[DeviceKey] = frozenset()
    """Devices that hold the request's KV, and room for it, already: its prompt is not to be computed there again."""


@dataclass(frozen=True, slots=True)
class Route:
    """A chain, head first, and what each of its devices will be given to do while the request runs."""

    devices: tuple[Device, ...]
    rows_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    tpot_s: float = 0.0
    """Time per token that is expected under the present load; 0 where the router does not predict it."""
    idle_tpot_s: float = 0.0
    """The same if nothing else ran there: waiting cannot make it less."""
    ttft_s: float = 0.0
    """Time to the first token, or of a session that moves to the next one."""


class Router(Protocol):
    """Phase 2. It is told of every change of a device, so that it can keep an index."""

    def changed(self, device: Device) -> None:
        """The device is ready, or not ready any more, or its load or free KV room is another."""

    def gone(self, device: Device) -> None:
        """The device is not part of the pool any more."""

    def route(self, request: RouteRequest, variant: Variant, now_s: float) -> Route | None:
        """A complete chain of ready devices of this variant with room, away from `avoid`; None if there is none now."""

    def finished(self, session_id: SessionId, devices: Sequence[DeviceKey], now_s: float) -> None:
        """The request gave its chain back (it may be asked to route it again)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`replans`: the planner may move from what is held to `allocator.allocate`'s plan when that pays."""

    name: str
    allocator: Allocator
    make_router: Callable[[State], Router]
    replans: bool = True


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What the operator may set."""

    bound: Bound = Bound()
    keeps_apart: bool = False
    """Chain diversity: neighbouring stages on different nodes, and requests of one tenant over different chains."""
