"""All policies on all scenarios, in the same simulator: throughput within the bound, latency at equal load, ablations.

    python -m benchmarks.scheduling.compare --out results [--jobs 2] [--scenarios wan-70b4-64 ...] [--seeds 0 1]

Throughput of a policy on a scenario is the best goodput (cost.Bound) over a ladder of offered rates that is the same
for all policies; then all meet the same rate, for their latency. Each run is written down as soon as it is done, and
found there the next time; so are those that are published (kept_runs.py). `--publish` adds what was run to them; after
a change of what is simulated, remove them first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.scheduling.ablations import ABLATIONS
from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.kept_runs import RESULTS, pack, unpack, work_name
from benchmarks.scheduling.scenarios import SCENARIOS
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.scheduler import our_policy
from coordinator.simulate import engine

OURS = "ours"
LADDER_STEP = 1.6
FIRST_SHARE = 0.2
"""The ladder begins at this share of what our planner thinks the pool could do, and rises by LADDER_STEP."""
NUM_STEPS = 6
BETWEEN = (0.8, 0.9, 1.12, 1.25)
"""Then these multiples of the best rate are tried, too: the ladder's steps are wide."""
ENOUGH_WORSE = 0.75
"""A policy whose goodput has fallen to this share of its best climbs no further."""
EQUAL_LOAD = 0.6
"""Latency is compared at the rate that asks for this share of what the best other policy served in the bound."""
CONFIG = SchedulerConfig()


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation's figures; a line of a file."""

    scenario: str
    policy: str
    seed: int
    requests_per_s: float
    goodput: float
    tokens_per_s: float
    latency_s: float
    latency_p99_s: float
    ttft_s: float
    tpot_s: float
    share_in_bound: float
    num_arrived: int
    num_finished: int
    num_refused: int
    num_restarted: int
    moved_bytes: float
    cpu_s: float


def _policy(name: str) -> Policy:
    if name == OURS:
        return our_policy(CONFIG)
    return {**POLICIES, **ABLATIONS}[name]()


def simulate(job: tuple[str, str, int, float]) -> Run:
    """One run."""
    name, policy, seed, rate = job
    began_s = time.process_time()
    outcome = engine.run(SCENARIOS[name].at_rate(rate), _policy(policy), seed)
    return Run(
        name,
        policy,
        seed,
        rate,
        outcome.goodput_tokens_per_s,
        outcome.tokens_per_s,
        outcome.latency_s.mean,
        outcome.latency_s.p99,
        outcome.ttft_s.mean,
        outcome.tpot_s.mean,
        outcome.share_in_bound,
        outcome.num_arrived,
        outcome.num_finished,
        outcome.num_refused,
        outcome.num_restarted,
        sum(outcome.bytes_moved.values()),
        time.process_time() - began_s,
    )


class Book:
    """Runs that are done, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.runs = [Run(**json.loads(line)) for line in lines]

    def find(self, scenario: str, policy: str, seed: int, rate: float) -> Run | None:
        known = (scenario, policy, seed, round(rate, 6))
        return next((r for r in self.runs if (r.scenario, r.policy, r.seed, round(r.requests_per_s, 6)) == known), None)

    def add(self, run: Run) -> None:
        self.runs.append(run)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")


def ladder(scenario: str, seed: int) -> list[float]:
    """Offered rates, requests per second: the same for all policies."""
    wanted = SCENARIOS[scenario].at_rate(1000.0)
    scheduler = engine.new_scheduler(wanted, None)
    simulation = engine.Simulation(wanted, scheduler, seed=seed)
    simulation.found()
    [plan] = scheduler.plan(simulation.timeline.now_s).models
    answer = engine.usual_workload(wanted, wanted.models[0]).num_answer_tokens
    most = plan.forecast.tokens_per_s / answer
    return [most * FIRST_SHARE * LADDER_STEP**step for step in range(NUM_STEPS)]


def equal_rate_of(scenario: str, goodput: float) -> float:
    """Requests per second for comparing latency, if the best other policy served so many tokens/s."""
    wanted = SCENARIOS[scenario]
    return EQUAL_LOAD * goodput / engine.usual_workload(wanted, wanted.models[0]).num_answer_tokens


@dataclass(frozen=True, slots=True)
class Job:
    """One policy on one scenario, at these rates, written down in this file."""

    scenario: str
    policy: str
    seed: int
    rates: tuple[float, ...]
    path: Path


def visit(job: Job, rate: float) -> Run:
    """Simulate it unless that was done before."""
    book = Book(job.path)
    run = book.find(job.scenario, job.policy, job.seed, rate)
    if run is None:
        run = simulate((job.scenario, job.policy, job.seed, rate))
        book.add(run)
    return run


def climb(job: Job) -> list[Run]:
    """Up the ladder until goodput falls, and then around the best."""
    best, done = 0.0, []
    for rate in job.rates:
        done.append(visit(job, rate))
        best = max(best, done[-1].goodput)
        if done[-1].goodput < ENOUGH_WORSE * best:
            break
    peak = max(done, key=lambda run: run.goodput).requests_per_s
    return [*done, *(visit(job, peak * share) for share in BETWEEN)]


def meet(job: Job) -> Run:
    """At the one rate that all meet."""
    return visit(job, job.rates[0])


def _level(jobs: Sequence[Job], climbed: Sequence[Sequence[Run]]) -> Iterator[Job]:
    """Each scenario's jobs again, at its rate for comparing latency."""
    best: dict[tuple[str, int], Run] = {}
    for run in (run for runs in climbed for run in runs if run.policy in POLICIES):
        known = best.get((run.scenario, run.seed))
        if known is None or run.goodput > known.goodput:
            best[run.scenario, run.seed] = run
    for job in jobs:
        rival = best.get((job.scenario, job.seed))
        if rival is not None and job.policy in (OURS, *POLICIES):
            yield replace(job, rates=(equal_rate_of(job.scenario, rival.goodput),))


def _jobs(scenarios: Iterable[str], policies: Iterable[str], seeds: Iterable[int], folder: Path) -> Iterator[Job]:
    for scenario in scenarios:
        for seed in seeds:
            rates = ladder(scenario, seed)
            for policy in policies:
                yield Job(scenario, policy, seed, tuple(rates), folder / work_name(scenario, policy, seed))


def main() -> None:
    """Run what is missing, and say what was found so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scenarios", nargs="+", choices=sorted(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--policies", nargs="+", default=[OURS, *POLICIES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--publish", action="store_true", help=f"add what was run to {RESULTS}")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    unpack(RESULTS, arguments.out)
    jobs = list(_jobs(arguments.scenarios, arguments.policies, arguments.seeds, arguments.out))
    climbed = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for runs in pool.map(climb, jobs):
            climbed.append(runs)
            _tell(max(runs, key=lambda run: run.goodput))
        for run in pool.map(meet, _level(jobs, climbed)):
            _tell(run)
    if arguments.publish:
        pack(arguments.out, RESULTS, arguments.scenarios)


def _tell(run: Run) -> None:
    print(
        f"{run.scenario:16} {run.policy:28} {run.goodput:8.0f} tok/s at {run.requests_per_s:.2f}/s, "
        f"mean {run.latency_s:.1f} s, {run.share_in_bound:.0%} in bound",
        flush=True,
    )


if __name__ == "__main__":
    main()
