"""Runs that are published with their figures: one file per scenario, next to one per policy in a folder of work.

A simulation is the same on any machine, so what is published need not be run again: `compare` begins with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path("benchmarks/scheduling/results")


def unpack(results: Path, folder: Path) -> None:
    """What is published, as files of work; a file that is there stays as it is."""
    for path in sorted(results.glob("*.jsonl")):
        by_file: dict[str, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            by_file.setdefault(work_name(run["scenario"], run["policy"], run["seed"]), []).append(line)
        for name, lines in by_file.items():
            if not (folder / name).exists():
                (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def pack(folder: Path, results: Path, scenarios: Iterable[str]) -> None:
    """All runs of these scenarios that are in the folder, by policy, seed and rate."""
    results.mkdir(parents=True, exist_ok=True)
    for scenario in scenarios:
        lines = [line for path in folder.glob(f"{scenario}.*.jsonl") for line in path.read_text("utf-8").splitlines()]
        if lines:
            lines.sort(key=_place)
            (results / f"{scenario}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def work_name(scenario: str, policy: str, seed: int) -> str:
    return f"{scenario}.{policy}.{seed}.jsonl"


def _place(line: str) -> tuple[str, int, float]:
    run = json.loads(line)
    return run["policy"], run["seed"], run["requests_per_s"]
