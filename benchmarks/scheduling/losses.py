"""What becomes of users when many nodes leave at once. Part of changes.py, which says what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.scheduling.downloads import GB, Ledger, forget_what_was_never_loaded, piece_of
from benchmarks.scheduling.soonest import Holder, Sources, soonest_s
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.pieces import on_paths
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.problems import fit_of, problem_of
from coordinator.scheduler.scheduler import Scheduler
from coordinator.scheduler.state import DeviceKey
from coordinator.simulate import engine
from coordinator.simulate.errors import ImpossibleCommand
from coordinator.simulate.hardware import VARIANT
from coordinator.simulate.outcome import Moment
from coordinator.simulate.scenario import MassLeave, Outage, Scenario, preset
from coordinator.simulate.world import SimDevice

WINDOW_S = 120.0
FEW = (6, 8, 12)
"""Nodes of pools in which half of the memory just holds the model (6 of these cards: 140 GB, the model: 41), or a few
times that."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a whole chain, and what ended it: a device's download (0: something else did).

    `least_s`: the shortest that it could have been from when the pool heard of the last loss in it, whoever had ordered
    what then (soonest.py); None where that is not known."""

    from_s: float
    to_s: float
    download_s: float
    least_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of users when many nodes left at once. `again_s`: after the last leave, until there was a chain."""

    scenario: str
    policy: str
    seed: int
    num_arrived: int
    num_finished: int
    num_failed: int
    num_refused: int
    num_restarted: int
    silence_s: float
    no_chain_s: float
    download_s: float
    least_s: float | None
    again_s: float
    tokens_share: float
    """Tokens per second in the two minutes after the last leave, of those in the two minutes before the first."""
    moved: float
    wrong: str
    """Why the simulator stopped the policy; empty if nothing was served wrongly."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was left when the pool heard of a loss."""

    at_s: float
    holders: Sequence[Holder]


class Watch:
    """The scheduler's door; at every turn it looks at what is really there."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.gaps: list[Gap] = []
        self._scheduler = scheduler
        self._simulation: engine.Simulation | None = None
        self._ledger: Ledger | None = None
        self._open_s: float | None = None
        self._known: Known | None = None
        self._has_begun = False

    def begin(self, simulation: engine.Simulation) -> None:
        """The simulation whose scheduler this is."""
        self._simulation, self._ledger = simulation, Ledger(simulation, is_last_only=False)

    def handle(self, event: ev.Event, now_s: float) -> Sequence[cmd.Command]:
        if self._simulation is not None and self._simulation.record.start_s and not self._has_begun:
            self._has_begun = True
            forget_what_was_never_loaded(self._simulation, self._scheduler.state)
        if self._simulation is not None and isinstance(event, ev.TimePassed | ev.SliceReady | ev.NodeLeft):
            self._look(self._simulation, event, now_s)
            if isinstance(event, ev.NodeLeft) or self._known is None:
                self._known = self._what_is_left(self._simulation, now_s) if self._open_s is not None else None
        return self._scheduler.handle(event, now_s)

    def end(self, now_s: float) -> None:
        """A gap that is open lasts until here."""
        if self._open_s is not None:
            self.gaps.append(Gap(self._open_s, now_s, 0.0, self._least_s(self._open_s)))

    def _look(self, simulation: engine.Simulation, event: ev.Event, now_s: float) -> None:
        [model] = simulation.fleet.models.values()
        ready = (d for d in simulation.fleet.devices.values() if d.is_ready and d.node.is_up)
        is_whole = bool(on_paths({piece_of(d.layers) for d in ready if d.layers}, model.facts.num_layers))
        if self._open_s is None and not is_whole:
            self._open_s = now_s
        elif self._open_s is not None and is_whole:
            took_s = self._download_s(simulation, event.device) if isinstance(event, ev.SliceReady) else 0.0
            self.gaps.append(Gap(self._open_s, now_s, took_s, self._least_s(self._open_s)))
            self._open_s = self._known = None

    def _download_s(self, simulation: engine.Simulation, key: DeviceKey) -> float:
        """Of the device's last order, as if nobody else downloaded anything."""
        device, scenario = simulation.fleet.devices[key], simulation.scenario
        orders = [order for order in (self._ledger.orders if self._ledger else ()) if order.key == key]
        if not orders or device.model is None or device.layers is None:
            return 0.0
        rate = min(device.node.site.down_bytes_per_s, scenario.pool.mirror_bits_per_s / 8)
        load_bytes = model_cost(device.model.facts, VARIANT).weight_bytes(device.layers)
        return orders[-1].num_bytes / rate + load_bytes / scenario.calibration.load_bytes_per_s

    def _what_is_left(self, simulation: engine.Simulation, now_s: float) -> Known:
        """Devices that are there, as they are now."""
        [digest] = simulation.fleet.models
        offers = self._offers(digest)
        here = [d for d in simulation.fleet.devices.values() if d.node.is_up and d.key in offers]
        return Known(now_s, [_holder(d, offers[d.key], d.node.disk.get(digest, set())) for d in here])

    def _offers(self, digest: str) -> dict[DeviceKey, Offer]:
        scheduler = self._scheduler
        problem = problem_of(scheduler.state, digest, VARIANT, scheduler.workloads, scheduler.config)
        return {offer.key: offer for offer in problem.offers}

    def _least_s(self, from_s: float) -> float | None:
        if self._known is None or self._simulation is None:
            return None
        scenario, scheduler = self._simulation.scenario, self._scheduler
        [digest] = self._simulation.fleet.models
        problem = problem_of(scheduler.state, digest, VARIANT, scheduler.workloads, scheduler.config)
        sources = Sources(scenario.pool.mirror_bits_per_s / 8, scenario.calibration.load_bytes_per_s)
        least_s = soonest_s(problem.model, fit_of(problem), self._known.holders, sources)
        return None if least_s is None else self._known.at_s - from_s + least_s


def _holder(device: SimDevice, offer: Offer, disk: set[int]) -> Holder:
    held = None if device.layers is None else piece_of(device.layers)
    return Holder(offer, frozenset(disk), device.node.site.down_bytes_per_s, held)


def lose_many(scenario: Scenario, policy: Policy | None, seed: int) -> Loss:
    """One run of a scenario in which many nodes leave at once."""
    watch = Watch(engine.new_scheduler(scenario, policy))
    name = engine.OURS if policy is None else policy.name
    simulation = engine.Simulation(scenario, watch, name, seed)
    watch.begin(simulation)
    wrong = ""
    try:
        simulation.run()
    except ImpossibleCommand as error:
        wrong = str(error)
    watch.end(simulation.timeline.now_s)
    record, (first_s, last_s) = simulation.record, _leaves(scenario)
    gaps = [gap for gap in watch.gaps if gap.to_s > record.start_s + first_s]
    longest = max(gaps, key=lambda gap: gap.to_s - gap.from_s, default=Gap(0.0, 0.0, 0.0))
    over_s = record.start_s + last_s
    return Loss(
        scenario=scenario.name,
        policy=name,
        seed=seed,
        num_arrived=record.num_arrived,
        num_finished=len(record.answers),
        num_failed=record.num_failed,
        num_refused=record.num_refused,
        num_restarted=record.num_restarted,
        silence_s=record.longest_gap_s,
        no_chain_s=longest.to_s - longest.from_s,
        download_s=longest.download_s,
        least_s=longest.least_s,
        again_s=next((gap.to_s - over_s for gap in gaps if gap.from_s <= over_s < gap.to_s), 0.0),
        tokens_share=_share(record.series, first_s, last_s),
        moved=sum(record.bytes_moved.values()),
        wrong=wrong,
    )


def _leaves(scenario: Scenario) -> tuple[float, float]:
    """When the first one happens and the last one, in seconds of traffic."""
    for happening in scenario.happenings:
        if isinstance(happening, MassLeave):
            return happening.at_s, happening.at_s + happening.within_s
        if isinstance(happening, Outage):
            return happening.at_s, happening.at_s
    raise ValueError(f"nobody leaves in {scenario.name}")


def _share(series: Sequence[Moment], first_s: float, last_s: float) -> float:
    before = [m.tokens_per_s for m in series if first_s - WINDOW_S < m.at_s <= first_s]
    after = [m.tokens_per_s for m in series if last_s < m.at_s <= last_s + WINDOW_S]
    return float(np.mean(after) / np.mean(before)) if after and sum(before) > 0.0 else 0.0


def many_leave_scenarios() -> list[Scenario]:
    """The presets, and half of a small pool at as much traffic per node."""
    half = preset("half-leave")
    return [half, preset("outage"), *(_with_nodes(half, num_nodes) for num_nodes in FEW)]


def _with_nodes(scenario: Scenario, num_nodes: int) -> Scenario:
    pool = msgspec.structs.replace(scenario.pool, num_nodes=num_nodes)
    rate = scenario.traffic.requests_per_s * num_nodes / scenario.pool.num_nodes
    return msgspec.structs.replace(scenario, name=f"{scenario.name}-{num_nodes}", pool=pool).at_rate(rate)


def losses_table(losses: Sequence[Loss]) -> str:
    """In markdown; a line per run."""
    lines = [
        "| scenario | policy | seed | arrived | finished | failed | refused | restarted | silence s | no chain s "
        "| download s | least s | chain after s | tok/s after/before | GB moved | served wrongly |",
        "|" + "---|" * 16,
    ]
    lines += [
        f"| {x.scenario} | {x.policy} | {x.seed} | {x.num_arrived} | {x.num_finished} | {x.num_failed} "
        f"| {x.num_refused} | {x.num_restarted} | {x.silence_s:.1f} | {x.no_chain_s:.1f} | {x.download_s:.1f} "
        f"| {'-' if x.least_s is None else f'{x.least_s:.1f}'} "
        f"| {x.again_s:.1f} | {x.tokens_share:.2f} | {x.moved / GB:.1f} | {x.wrong or 0} |"
        for x in losses
    ]
    return "\n".join(lines)
