"""What the runs of compare.py say: each policy's best throughput, latency at equal load, what ablations cost.

Of several seeds, figures are taken per seed, each at its own best rate and against its own best other policy, and then
averaged.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.compare import EQUAL_LOAD, OURS, Run, equal_rate_of
from benchmarks.scheduling.scenarios import SCENARIOS

ENOUGH_FINISHED = 0.95
"""A policy that turned more people away is not compared by the latency of those whom it served."""

Table = Mapping[str, Sequence[Run]]
"""Runs of one scenario by policy."""


@dataclass(frozen=True)
class Throughput:
    """One scenario. `goodput`: tokens/s in the bound by policy, means over the seeds; `ratios`: ours to the best other
    policy of each seed; `at_edge`: policies whose best run was at the end of the rates that they were tried at."""

    seeds: tuple[int, ...]
    goodput: Mapping[str, float]
    rivals: tuple[str, ...]
    ratios: tuple[float, ...]
    at_edge: frozenset[str]

    @property
    def figure(self) -> float:
        return mean(self.ratios)


@dataclass(frozen=True)
class EqualLoad:
    """One scenario and seed at one offered rate. `share`: of what the best other policy served in the bound, that this
    rate asks for."""

    rate: float
    share: float
    ours: Run
    rival: Run
    left_out: tuple[str, ...]

    @property
    def gain(self) -> float:
        """By how much our mean latency is lower, as a share."""
        return 1.0 - self.ours.latency_s / self.rival.latency_s


def read(folder: Path) -> dict[str, dict[str, list[Run]]]:
    """Runs by scenario and policy."""
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            run = Run(**json.loads(line))
            found[run.scenario][run.policy].append(run)
    return found


def is_ablation(policy: str) -> bool:
    """Half ours, or ours with one thing off."""
    return "+" in policy or policy.startswith("without-")


def others(policies: Collection[str]) -> list[str]:
    """Those that have nothing of ours."""
    rest = [policy for policy in policies if policy != OURS and not is_ablation(policy)]
    return sorted(rest, key=lambda policy: ([*POLICIES, policy].index(policy), policy))


def compared(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The scenarios, in their order, on which ours and others were run with a common seed."""
    return {n: tables[n] for n in SCENARIOS if n in tables and others(tables[n]) and common_seeds(tables[n])}


def common_seeds(table: Table) -> tuple[int, ...]:
    """Those that ours and all other policies were run with; a mean over different seeds would compare nothing."""
    runs = [table.get(OURS, ()), *(table[policy] for policy in others(table))]
    return tuple(sorted(set.intersection(*({run.seed for run in some} for some in runs))))


def of_seed(table: Table, seed: int) -> dict[str, list[Run]]:
    """Ours and the others' runs with that seed."""
    return {policy: [r for r in table[policy] if r.seed == seed] for policy in (OURS, *others(table))}


def best(runs: Sequence[Run]) -> Run:
    """The rung of the ladder with the best goodput."""
    return max(runs, key=lambda run: run.goodput)


def best_other(table: Table) -> Run:
    return max((best(table[policy]) for policy in others(table)), key=lambda run: run.goodput)


def is_at_edge(runs: Sequence[Run]) -> bool:
    """Whether a higher or a lower rate than those tried might have been better still."""
    rates, top = [run.requests_per_s for run in runs], best(runs)
    return top.requests_per_s == max(rates) or (top.requests_per_s == min(rates) and top.share_in_bound < 0.95)


def throughput(table: Table) -> Throughput:
    seeds = common_seeds(table)
    each = [of_seed(table, seed) for seed in seeds]
    rivals = [best_other(one) for one in each]
    ratios = (
        best(one[OURS]).goodput / rival.goodput if rival.goodput else float("inf")
        for one, rival in zip(each, rivals, strict=True)
    )
    return Throughput(
        seeds,
        {policy: mean([best(one[policy]).goodput for one in each]) for policy in each[0]},
        tuple(dict.fromkeys(rival.policy for rival in rivals)),
        tuple(ratios),
        frozenset(policy for policy in each[0] if any(is_at_edge(one[policy]) for one in each)),
    )


def equal_rate(table: Table) -> float | None:
    """The rate next to the one that asks for EQUAL_LOAD of what the best other policy served (equal_rate_of), of those
    that all of a seed's policies were tried at; None if there is none."""
    rival = best_other(table)
    wanted = equal_rate_of(rival.scenario, rival.goodput)
    shared = set.intersection(*({round(run.requests_per_s, 6) for run in runs} for runs in table.values()))
    rates = [run.requests_per_s for run in table[OURS] if round(run.requests_per_s, 6) in shared]
    return min(rates, key=lambda rate: (abs(rate - wanted), rate), default=None)


def equal_load(table: Table) -> EqualLoad | None:
    """Of one seed. None if no rate was met by all, if no other served anything in the bound, or if ours or all others
    turned too many away."""
    rate = equal_rate(table)
    if rate is None:
        return None
    at = {
        policy: next(r for r in runs if round(r.requests_per_s, 6) == round(rate, 6)) for policy, runs in table.items()
    }
    fair = {policy: run for policy, run in at.items() if run.num_finished >= ENOUGH_FINISHED * run.num_arrived}
    if OURS not in fair or len(fair) == 1:
        return None
    rival = min((run for policy, run in fair.items() if policy != OURS), key=lambda run: run.latency_s)
    left_out = tuple(policy for policy in at if policy not in fair)
    most = best_other(table)
    if not most.goodput:
        return None
    share = EQUAL_LOAD * rate / equal_rate_of(most.scenario, most.goodput)
    return EqualLoad(rate, share, at[OURS], rival, left_out)


def equal_loads(table: Table) -> list[EqualLoad]:
    """Of every seed; empty unless all can be compared."""
    each = [equal_load(of_seed(table, seed)) for seed in common_seeds(table)]
    return [] if None in each else [one for one in each if one is not None]


def ablation(table: Table, policy: str) -> tuple[float, float]:
    """(tokens/s in the bound, share of ours), over the seeds that both were run with."""
    seeds = {run.seed for run in table[policy]} & {run.seed for run in table[OURS]}
    pairs = [
        (best([r for r in table[policy] if r.seed == s]).goodput, best([r for r in table[OURS] if r.seed == s]).goodput)
        for s in sorted(seeds)
    ]
    return mean([part for part, _ in pairs]), mean([part / whole for part, whole in pairs if whole])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
