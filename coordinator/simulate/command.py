"""The command `decentllm-coordinator simulate`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from coordinator.scheduler.policy import Policy
from coordinator.simulate import engine, report
from coordinator.simulate.outcome import Outcome
from coordinator.simulate.plots import write_plots
from coordinator.simulate.scenario import Scenario, preset, preset_names, read_scenario

Policies = Mapping[str, Callable[[], Policy | None]]
"""By name, how to make them. None stands for the scheduler's own."""
OURS: Policies = {engine.OURS: lambda: None}


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], policies: Policies = OURS
) -> argparse.ArgumentParser:
    """Other programs (benchmarks) offer more policies than the coordinator has."""
    parser = subparsers.add_parser(
        "simulate", help="simulate a pool and its users", description="Simulate a pool and its users: a table, plots."
    )
    add = parser.add_argument
    add("scenario", metavar="SCENARIO", help=f"a .toml file, or one of {', '.join(preset_names())}")
    add("--policy", dest="policies", action="append", choices=sorted(policies), help="may be given several times")
    add("--seed", type=_seed, default=0, help="of all chance (default: 0)")
    add("--hours", type=_positive, default=None, help="how long, instead of the scenario's duration")
    add("--rate", type=_positive, default=None, help="requests per second, instead of the scenario's")
    add("--out", type=Path, default=None, metavar="FOLDER", help="write plots and every figure as JSON there")
    parser.set_defaults(run=lambda arguments: run(arguments, policies))
    return parser


def run(arguments: argparse.Namespace, policies: Policies = OURS) -> int:
    """Prints the table; returns the exit status. Raises ScenarioError, ImpossibleCommand, OSError."""
    scenario = _scenario(arguments)
    names = arguments.policies or [engine.OURS]
    outcomes = [engine.run(scenario, policies[name](), arguments.seed) for name in names]
    sys.stdout.write(report.table(outcomes) + "\n")
    if arguments.out is not None:
        _write(outcomes, arguments.out)
    return 0


def _scenario(arguments: argparse.Namespace) -> Scenario:
    name = str(arguments.scenario)
    scenario = read_scenario(Path(name)) if name.endswith(".toml") else preset(name)
    if arguments.hours is not None:
        scenario = scenario.lasting(arguments.hours * 3600.0)
    return scenario if arguments.rate is None else scenario.at_rate(arguments.rate)


def _write(outcomes: list[Outcome], folder: Path) -> None:
    paths = write_plots(outcomes, folder)
    for outcome in outcomes:
        path = folder / f"outcome-{outcome.policy}.json"
        path.write_text(report.to_json(outcome))
        paths.append(path)
    sys.stdout.write("".join(f"wrote {path}\n" for path in paths))


def _seed(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0 to 999999999")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value
