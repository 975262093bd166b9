"""Run a scenario: the same scheduler, told what nodes, links and users do, on simulated time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.scheduler import Scheduler
from coordinator.simulate.churn import fates
from coordinator.simulate.fleet import Fleet
from coordinator.simulate.geography import REGIONS, make_sites
from coordinator.simulate.lengths import LENGTHS
from coordinator.simulate.models import MODELS
from coordinator.simulate.outcome import BUCKET_S, Held, Outcome, Record, spread
from coordinator.simulate.scenario import Scenario, ServedModel
from coordinator.simulate.timeline import SchedulerLike, Timeline
from coordinator.simulate.users import Users

OURS = "ours"
"""The name of the scheduler's own policy."""
SETTLING_TICKS = 24
SETTLING_S = 5.0
"""A pool that has long been there has had so much time to measure its links before the traffic begins, and as much
again to move to its plan."""
ENOUGH_WORSE = 0.7
"""A ladder of rates ends when goodput has fallen to this share of the best."""


def run(scenario: Scenario, policy: Policy | None = None, seed: int = 0) -> Outcome:
    """One run. `policy` None is the scheduler's own. The same scenario, policy and seed have the same outcome.

    Raises ImpossibleCommand if the policy orders what no pool could do."""
    return Simulation(scenario, new_scheduler(scenario, policy), OURS if policy is None else policy.name, seed).run()


def find_goodput(scenario: Scenario, policy: Policy | None, rates: Sequence[float], seed: int = 0) -> Outcome:
    """The best goodput within the bound over a ladder of offered rates, requests per second, in rising order."""
    best: Outcome | None = None
    for rate in rates:
        outcome = run(scenario.at_rate(rate), policy, seed)
        if best is None or outcome.goodput_tokens_per_s > best.goodput_tokens_per_s:
            best = outcome
        elif outcome.goodput_tokens_per_s < ENOUGH_WORSE * best.goodput_tokens_per_s:
            break
    if best is None:
        raise ValueError("a ladder needs at least one rate")
    return best


def new_scheduler(scenario: Scenario, policy: Policy | None) -> Scheduler:
    """As a coordinator would make it."""
    scheduler = Scheduler(SchedulerConfig(bound=scenario.bound), policy)
    if not scenario.cold_start:
        for served in scenario.models:
            scheduler.workloads.set_prior(MODELS[served.name].facts.manifest_hash, usual_workload(scenario, served))
    return scheduler


def usual_workload(scenario: Scenario, served: ServedModel) -> Workload:
    """What a pool that has long been there has seen of this model's requests."""
    lengths = LENGTHS[scenario.traffic.lengths]
    share = served.share / sum(model.share for model in scenario.models)
    prompt, answer = lengths.prompt.mean, lengths.answer.mean
    return Workload(prompt, answer, prompt + lengths.answer.most, scenario.traffic.requests_per_s * share * answer)


class Simulation:
    """One scenario with one scheduler. Chance is split, so that every policy meets the same nodes, users and fates."""

    def __init__(self, scenario: Scenario, scheduler: SchedulerLike, policy_name: str = OURS, seed: int = 0) -> None:
        self.scenario = scenario
        self.policy_name = policy_name
        self.seed = seed
        places, fate, users, news = np.random.default_rng(seed).spawn(4)
        self.record = Record()
        self.timeline = Timeline(scheduler)
        self.timeline.obey = self._obey
        self.fleet = Fleet(scenario, self.timeline, self.record, news)
        self.users = Users(scenario, self.timeline, self.fleet, self.record)
        self.fleet.on_hang, self.fleet.on_part = self.users.hang, self.users.part
        self.fleet.on_break = self.users.resume
        self._sites = make_sites(scenario.pool.num_nodes, scenario.pool.num_regions, scenario.pool.access, places)
        self._fate_rng, self._user_rng = fate, users
        self.fleet.build(self._sites)

    def run(self) -> Outcome:
        """Raises ImpossibleCommand."""
        self.found()
        start_s = self.record.start_s = self.timeline.now_s
        self.users.expect(self._user_rng)
        for fate in fates(self.scenario, self._sites, self._fate_rng):
            self.timeline.at(start_s + fate.at_s, self.fleet.meet, fate)
        self.timeline.after(self.scenario.tick_s, self._tick)
        self.timeline.after(self.scenario.report_s, self.fleet.report)
        self.timeline.after(BUCKET_S, self._bucket)
        self.timeline.at(start_s + self.scenario.warm_up_s, self._forget_busy)
        end_s = start_s + self.scenario.duration_s
        self.timeline.run(end_s, lambda: False)
        self.timeline.now_s = end_s
        held = self._held()
        self.timeline.run(end_s + self.scenario.drain_s, lambda: not self.users.live)
        if self.users.live:
            self.record.silence_ends(self.timeline.now_s)
        return self._outcome(held)

    # ------------------------------------------------------------ the pool begins

    def found(self) -> None:
        """All nodes join. Unless they start cold, they have long been there: planned, loaded and measured."""
        self.fleet.is_instant = not self.scenario.cold_start
        for node in self.fleet.nodes:
            self.fleet.join(node)
        for served in self.scenario.models:
            self.timeline.tell(ev.ModelAdded(MODELS[served.name].facts, served.num_replicas))
        if self.fleet.is_instant:
            self._settle()
            self.timeline.tell(ev.Replan())
            self._settle()
            self.fleet.is_instant = False

    def _settle(self) -> None:
        for _ in range(SETTLING_TICKS):
            self.timeline.now_s += SETTLING_S
            self.timeline.tell(ev.TimePassed())

    # ------------------------------------------------------------ while it runs

    def _obey(self, command: Command, event: ev.Event) -> None:
        match command:
            case cmd.StartChain():
                self.users.start(command)
            case cmd.RefuseRequest():
                self.users.refuse(command)
            case cmd.Assign():
                self.fleet.assign(command, cause_of(event))
            case cmd.Release() | cmd.GiveUp():
                self.fleet.release(command)
            case cmd.Measure():
                self.fleet.measure(command)
            case cmd.MeasureLinks():
                self.fleet.measure_links(command)

    def _tick(self) -> None:
        self.timeline.tell(ev.TimePassed())
        self.timeline.after(self.scenario.tick_s, self._tick)

    def _bucket(self) -> None:
        num_running = self.users.num_running
        num_waiting = len(self.users.live) - num_running
        self.record.moment(self.timeline.now_s, num_running, num_waiting, self.fleet.num_up)
        self.timeline.after(BUCKET_S, self._bucket)

    def _forget_busy(self) -> None:
        for device in self.fleet.devices.values():
            device.reported_s = -device.seen_s

    # ------------------------------------------------------------ what was found

    def _held(self) -> tuple[Held, ...]:
        """As of now: the end of the traffic."""
        rows: list[Held] = []
        for node in self.fleet.nodes:
            device = node.device
            if device.model is not None and device.layers is not None and node.is_up:
                region, name = REGIONS[node.site.region], device.model.facts.name
                layers, busy = device.layers, device.busy_s / self._measured_s
                rows.append(Held(node.number, device.spec.name, region, name, layers.start, layers.stop, busy))
        return tuple(rows)

    @property
    def _measured_s(self) -> float:
        return self.scenario.duration_s - self.scenario.warm_up_s

    def _outcome(self, held: tuple[Held, ...]) -> Outcome:
        record, scenario = self.record, self.scenario
        from_s, to_s = record.start_s + scenario.warm_up_s, record.start_s + scenario.duration_s
        within = [answer for answer in record.answers if from_s <= answer.finished_s <= to_s]
        counted = [answer for answer in record.answers if answer.arrived_s >= from_s]
        good = [answer for answer in counted if answer.is_within(scenario.bound)]
        latencies = sorted(answer.latency_s for answer in counted)
        return Outcome(
            scenario=scenario.name,
            policy=self.policy_name,
            seed=self.seed,
            requests_per_s=scenario.traffic.requests_per_s,
            duration_s=scenario.duration_s,
            goodput_tokens_per_s=sum(answer.num_tokens for answer in good) / self._measured_s,
            tokens_per_s=sum(answer.num_tokens for answer in within) / self._measured_s,
            latency_s=spread(latencies),
            ttft_s=spread(answer.ttft_s for answer in counted),
            tpot_s=spread(answer.tpot_s for answer in counted),
            share_in_bound=len(good) / len(counted) if counted else 0.0,
            num_arrived=record.num_arrived,
            num_finished=len(record.answers),
            num_refused=record.num_refused,
            num_failed=record.num_failed,
            num_unfinished=len(self.users.live),
            num_restarted=record.num_restarted,
            longest_gap_s=record.longest_gap_s,
            bytes_moved=dict(sorted(record.bytes_moved.items())),
            series=tuple(record.series),
            held=held,
            latencies_s=tuple(latencies),
            num_scheduler_events=self.timeline.num_events,
        )


def cause_of(event: ev.Event) -> str:
    """Whom the bytes of an assignment are counted for."""
    match event:
        case ev.NodeJoined() | ev.DeviceMeasured():
            return "join"
        case ev.NodeLeft() | ev.DeviceFailed() | ev.NodeDraining():
            return "leave"
        case _:
            return "re-plan"
