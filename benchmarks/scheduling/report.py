"""The tables of docs/scheduling.md from the runs that compare.py wrote down.

python -m benchmarks.scheduling.report results > table.md
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.compare import OURS, Run
from benchmarks.scheduling.scenarios import SCENARIOS, WIDE

ENOUGH_FINISHED = 0.95
"""A policy that turned more people away is not compared by the latency of those whom it served."""
EQUAL_LOAD = 0.6
"""Latency is compared at the rate of the ladder next to this share of what the best other policy served best at."""

Table = Mapping[str, Sequence[Run]]


def read(folder: Path) -> dict[str, dict[str, list[Run]]]:
    """Runs by scenario and policy."""
    found: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            run = Run(**json.loads(line))
            found[run.scenario][run.policy].append(run)
    return found


def best(runs: Sequence[Run]) -> Run:
    return max(runs, key=lambda run: run.goodput)


def others(table: Table) -> dict[str, Run]:
    """The best run of each policy that is not ours, nor half ours."""
    return {policy: best(runs) for policy, runs in table.items() if policy in POLICIES}


def throughput_row(scenario: str, table: Table) -> tuple[str, float]:
    ours, rivals = best(table[OURS]), others(table)
    rival = max(rivals.values(), key=lambda run: run.goodput)
    ratio = ours.goodput / rival.goodput if rival.goodput else float("inf")
    each = " | ".join(f"{rivals[p].goodput:,.0f}" if p in rivals else "-" for p in POLICIES if p in shown())
    return f"| {scenario} | {ours.goodput:,.0f} | {each} | {rival.policy} | {ratio:.2f} |", ratio


def shown() -> list[str]:
    return [policy for policy in POLICIES if policy != "parallax-greedy-rr"]


def latency_row(scenario: str, table: Table) -> tuple[str, float] | None:
    rate = equal_rate(table)
    at = {
        policy: next((r for r in runs if abs(r.requests_per_s - rate) < 1e-6), None) for policy, runs in table.items()
    }
    ours = at.get(OURS)
    fair = [
        r
        for p, r in at.items()
        if p in POLICIES and r is not None and r.num_finished >= ENOUGH_FINISHED * r.num_arrived
    ]
    if ours is None or not fair:
        return None
    rival = min(fair, key=lambda run: run.latency_s)
    less = 1.0 - ours.latency_s / rival.latency_s
    row = (
        f"| {scenario} | {rate:.2f} | {ours.latency_s:.1f} | {ours.latency_p99_s:.1f} | {rival.policy} | "
        f"{rival.latency_s:.1f} | {rival.latency_p99_s:.1f} | {less:+.0%} |"
    )
    return row, less


def equal_rate(table: Table) -> float:
    """A rate that every policy was tried at: one of the ladder's."""
    wanted = EQUAL_LOAD * max(others(table).values(), key=lambda run: run.goodput).requests_per_s
    shared = set.intersection(*({run.requests_per_s for run in runs} for p, runs in table.items() if p in POLICIES))
    shared &= {run.requests_per_s for run in table[OURS]}
    return min(shared, key=lambda rate: abs(rate - wanted))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    """Write the tables for whatever was run."""
    tables = read(Path(sys.argv[1]))
    wide = {scenario.name for scenario in WIDE}
    names = [name for name in SCENARIOS if OURS in tables.get(name, {}) and others(tables[name])]
    print(f"| scenario | ours | {' | '.join(shown())} | best other | ours / best other |")
    print("|---|" + "---|" * (len(shown()) + 3))
    rows = {name: throughput_row(name, tables[name]) for name in names}
    for row, _ in rows.values():
        print(row)
    ratios = [ratio for name, (_, ratio) in rows.items() if name in wide]
    print(
        f"\nMean over the WAN scenarios: {mean(ratios):.2f}; least over all: {min(r for _, r in rows.values()):.2f}.\n"
    )
    print("| scenario | requests/s | ours, mean s | p99 s | best other | mean s | p99 s | ours against it |")
    print("|---|---|---|---|---|---|---|---|")
    latencies = {name: row for name in names if (row := latency_row(name, tables[name])) is not None}
    for line, _ in latencies.values():
        print(line)
    gains = [gain for name, (_, gain) in latencies.items() if name in wide]
    print(f"\nMean over the WAN scenarios: {mean(gains):.0%} shorter.")
    for name in names:
        if mixed := {p: best(runs) for p, runs in tables[name].items() if "+" in p}:
            parts = ", ".join(f"{policy} {run.goodput:,.0f}" for policy, run in sorted(mixed.items()))
            ours = best(tables[name][OURS]).goodput
            print(f"\nAblations, {name}, tokens/s within the bound: ours {ours:,.0f}, {parts}.")


if __name__ == "__main__":
    main()
