"""Ablations: one of our phases with the other of theirs, and ours with one thing off.

The scheduler has no switches for this. Phase 1 is told less of its problem, the router's parts are replaced by ones
that know less, and what the router says is changed on its way. The planner still judges re-plans by the whole cost
model: an allocator that is blind to something may be kept from a harmful move, but not from its first layout.

KV room is always kept, for a request that does not fit cannot run. All else is as in `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import harmonic_mean
from typing import ClassVar
from unittest import mock

import numpy as np

from benchmarks.scheduling.baselines import POLICIES, combine
from coordinator.scheduler import allocation, repair
from coordinator.scheduler.allocation import LaneAllocator
from coordinator.scheduler.candidates import BUSY_SHARE, Candidates, StageTime
from coordinator.scheduler.cost import Speed, model_cost
from coordinator.scheduler.grouping import all_sketches
from coordinator.scheduler.links import Floats, Ints, LinkMap
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Lane, Placement, Problem
from coordinator.scheduler.policy import Policy, Router, SchedulerConfig
from coordinator.scheduler.routing import ChainRouter, Table
from coordinator.scheduler.scheduler import our_policy
from coordinator.scheduler.search import Proposal, Search
from coordinator.scheduler.spares import Spares
from coordinator.scheduler.state import IDLE, Device, Load, State
from coordinator.scheduler.tables import Sketch
from protocol.values import NodeId, Variant

OURS = "ours"
CONFIG = SchedulerConfig()
NUM_SAMPLED = 64
"""Nodes whose links stand for all of a pool's."""
NO_KV_TOKENS = 1.0
"""What a request reserves where KV is not to count: one token, as nothing may be divided by zero."""


# ---------------------------------------------------------------- phase 1, told less


@dataclass(frozen=True, slots=True)
class ToldLess:
    """Our allocator on another problem than there is: `retold` says which."""

    retold: Callable[[Problem], Problem]
    allocator: LaneAllocator = field(default_factory=LaneAllocator)

    def allocate(self, problem: Problem) -> Sequence[Placement]:
        return self.allocator.allocate(self.retold(problem))

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        return self.allocator.adapt(self.retold(problem))


class EvenLinks(LinkMap):
    """Every node is as far from every other, and nobody is in a known region."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        super().__init__()
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s

    def delay_s(self, a: NodeId, b: NodeId) -> float:
        return 0.0 if a == b else self._delay_s

    def bytes_per_s(self, a: NodeId, b: NodeId) -> float:
        return math.inf if a == b else self._bytes_per_s

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        return np.where(sources[:, None] == targets, 0.0, self._delay_s)

    def pair_delays_s(self, sources: Ints, targets: Ints) -> Floats:
        return np.where(sources == targets, 0.0, self._delay_s)

    def upload(self, row: int) -> float:
        return self._bytes_per_s

    def uploads(self, rows: Ints) -> Floats:
        return np.full(len(rows), self._bytes_per_s)


def with_even_links(problem: Problem) -> Problem:
    """All links are the pool's mean one: near and far are gone, but not what a hop costs on average."""
    links = problem.links
    nodes = list(dict.fromkeys(offer.key.node_id for offer in problem.offers))
    some = nodes[:: max(1, len(nodes) // NUM_SAMPLED)]
    if len(some) < 2:
        return problem
    rows = np.array([links.row(node) for node in some], dtype=np.intp)
    delay_s = float(links.delays_s(rows, rows).sum()) / (len(rows) * (len(rows) - 1))
    return replace(problem, links=EvenLinks(delay_s, harmonic_mean(links.uploads(rows).tolist())))


def with_even_speeds(problem: Problem) -> Problem:
    """All devices are as fast as the mean one, so that memory alone decides who takes how many layers."""
    if not problem.offers:
        return problem
    speeds = [offer.speed for offer in problem.offers]
    mean = Speed(
        harmonic_mean([s.step_s for s in speeds]),
        harmonic_mean([s.row_s for s in speeds]),
        harmonic_mean([s.prefill_s for s in speeds]),
        harmonic_mean([s.head_s for s in speeds]),
    )
    return replace(problem, offers=tuple(replace(offer, speed=mean) for offer in problem.offers))


def with_tiny_requests(problem: Problem) -> Problem:
    """Requests reserve next to no KV room. The floor that every slice leaves stays."""
    return replace(problem, workload=replace(problem.workload, num_reserved_tokens=NO_KV_TOKENS))


def without_budget(problem: Problem) -> Problem:
    """No plan may be tried beside the constructed one."""
    return replace(problem, budget=0)


# ---------------------------------------------------------------- phase 1 in whole replicas


class OneHolderSearch(Search):
    """Proposes stages of one holder only."""

    def _with(self, sketch: Sketch, device: int) -> Sketch:
        at = self._draw(len(sketch) + 1)
        return (*sketch[:at], (device,), *sketch[at:])

    def _redeal(self) -> Proposal | None:
        """That is where stages get several holders at once."""
        return self._regroup()


class NobodyBeside(Spares):
    """Spare devices stand beside nobody, and split no slice."""

    def choose(self, spares: Sequence[int]) -> dict[int, tuple[Piece, str]]:
        return {}


def one_holder_sketches(offers: Sequence[int]) -> list[Sketch]:
    """Those of all lanes whose stages have one holder each."""
    return [sketch for sketch in all_sketches(offers) if all(len(holders) == 1 for holders in sketch)]


class WholeReplicas(LaneAllocator):
    """Every stage has one holder; what makes no lane of its own stays free.

    Allocation and repair make the search, its beginnings and the spares' places themselves, and take no others: while
    they run, the names stand for what is above (in this process only, which simulates one thing at a time)."""

    def adapt(self, problem: Problem) -> Sequence[Placement]:
        with mock.patch.object(repair, "Spares", NobodyBeside):
            return super().adapt(problem)

    def lanes_from(self, problem: Problem, indices: Sequence[int]) -> tuple[Lane, ...]:
        search = mock.patch.object(allocation, "Search", OneHolderSearch)
        with search, mock.patch.object(allocation, "all_sketches", one_holder_sketches):
            return super().lanes_from(problem, indices)


# ---------------------------------------------------------------- phase 2, knowing less


class SelfishTime(StageTime):
    """What a request does to others counts for nothing."""

    def others_loss_s(self, token_s: float, load: Load, num_requests: int) -> float:
        return 0.0


class IdleTime(SelfishTime):
    """As if nothing ran there."""

    def times_s(self, load: Load, num_requests: int) -> tuple[float, float]:
        return super().times_s(IDLE, 0)


class SelfishCandidates(Candidates):
    """Devices cost what they take for the newcomer itself."""

    stage_time: ClassVar[type[StageTime]] = SelfishTime

    def put_all(self, devices: Sequence[Device], now_s: float) -> None:
        """One by one: the quicker way for many does not ask their `StageTime`."""
        for device in devices:
            self.put(device, now_s)

    def _stage(self, slot: int, device: Device) -> StageTime:
        stage = super()._stage(slot, device)
        return self.stage_time(stage.speed, stage.work, stage.last, stage.up_s)


class IdleCandidates(SelfishCandidates):
    """Devices cost what they would take if they were idle; their KV room is what it is."""

    stage_time: ClassVar[type[StageTime]] = IdleTime

    def put(self, device: Device, now_s: float) -> None:
        super().put(device, now_s)
        self._times[:, self.slots[device.key]] /= 1.0 + BUSY_SHARE * device.num_requests


class SelfishRouter(ChainRouter):
    """Our router with other candidates."""

    candidates: ClassVar[type[Candidates]] = SelfishCandidates

    def _enter(self, device: Device, model: str) -> tuple[str, Variant]:
        name = (model, device.spec.variant)
        if name not in self._tables:
            cost = model_cost(self._state.models[model], device.spec.variant)
            self._tables[name] = Table(self.candidates(cost, self._state.links))
        return super()._enter(device, model)


class LoadBlindRouter(SelfishRouter):
    """Neither its choice nor its prediction knows what runs; so it also never says that a chain is crowded."""

    candidates: ClassVar[type[Candidates]] = IdleCandidates


def link_blind_router(state: State) -> Router:
    """Neither its choice nor its prediction knows of links: rows arrive as soon as they are sent."""
    return ChainRouter(replace(state, links=EvenLinks(0.0, math.inf)), CONFIG)


# ---------------------------------------------------------------- the policies


def _whole(name: str) -> Policy:
    return our_policy(CONFIG) if name == OURS else POLICIES[name]()


def _halves(name: str, first: str, second: str) -> Callable[[], Policy]:
    """Phase 1 of one, phase 2 of the other."""
    return lambda: combine(name, _whole(first), _whole(second))


def _told(name: str, retold: Callable[[Problem], Problem]) -> Callable[[], Policy]:
    return lambda: replace(our_policy(CONFIG), name=name, allocator=ToldLess(retold))


def _routed(name: str, make_router: Callable[[State], Router]) -> Callable[[], Policy]:
    return lambda: replace(our_policy(CONFIG), name=name, make_router=make_router)


def without_extra_holders() -> Policy:
    return replace(our_policy(CONFIG), name="without-extra-holders", allocator=WholeReplicas())


def without_replanning() -> Policy:
    """The first layout is repaired when devices come and go, but never made anew."""
    return replace(our_policy(CONFIG), name="without-replanning", replans=False)


MIXTURES: Mapping[str, Callable[[], Policy]] = {
    "ours+parallax-dp-routing": _halves("ours+parallax-dp-routing", OURS, "parallax-greedy-dp"),
    "ours+petals-routing": _halves("ours+petals-routing", OURS, "petals"),
    "parallax-greedy+our-routing": _halves("parallax-greedy+our-routing", "parallax-greedy-dp", OURS),
    "petals+our-routing": _halves("petals+our-routing", "petals", OURS),
    "helix+our-routing": _halves("helix+our-routing", "helix", OURS),
    "hexgen+our-routing": _halves("hexgen+our-routing", "hexgen", OURS),
}
"""One phase of ours with the other of theirs."""
WITHOUT: Mapping[str, Callable[[], Policy]] = {
    "without-search": _told("without-search", without_budget),
    "without-regions": _told("without-regions", with_even_links),
    "without-extra-holders": without_extra_holders,
    "without-kv-room": _told("without-kv-room", with_tiny_requests),
    "without-measured-speed": _told("without-measured-speed", with_even_speeds),
    "without-load": _routed("without-load", lambda state: LoadBlindRouter(state, CONFIG)),
    "without-links": _routed("without-links", link_blind_router),
    "without-own-cost": _routed("without-own-cost", lambda state: SelfishRouter(state, CONFIG)),
    "without-replanning": without_replanning,
}
"""Ours with one thing off."""
ABLATIONS: Mapping[str, Callable[[], Policy]] = {**MIXTURES, **WITHOUT}
"""By name. Each call makes a new one: routers keep what they have chosen."""
