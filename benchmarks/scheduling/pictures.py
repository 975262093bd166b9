"""Pictures for docs/scheduling.md from the runs that compare.py wrote down. Needs matplotlib (the extra `plots`).

    python -m benchmarks.scheduling.pictures FOLDER --out docs/scheduling

`goodput.png` has every scenario. The others are of one scenario, which is simulated again for them, with ours and the
best other policy: at the rate of equal load (comparison.py), and at the one that ours served most at.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.compare import OURS
from benchmarks.scheduling.comparison import (
    Table,
    best,
    best_other,
    common_seeds,
    compared,
    equal_rate,
    of_seed,
    others,
    read,
)
from benchmarks.scheduling.scenarios import SCENARIOS
from coordinator.simulate import engine
from coordinator.simulate.errors import ScenarioError
from coordinator.simulate.outcome import Outcome
from coordinator.simulate.plots import write_plots

SHOWN = "wan-70b4-64"
"""The scenario whose latency, throughput over time and layers are drawn."""
NUM_COLUMNS = 3
DPI = 90
NUM_COLOURS = 255
"""Of a file's palette: lines and their smooth edges need no more."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C8C00")
"""Told apart by colour-blind people, too (Okabe and Ito 2008, with a grey and a darker yellow); ours is black."""
DASHES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^v<>x"


def styles(policies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How a line looks. No two are told apart by colour alone: dashes and markers differ, too."""
    rest = [policy for policy in policies if policy != OURS]
    found: dict[str, dict[str, Any]] = {OURS: {"color": "black", "linewidth": 3.0, "zorder": 3, "linestyle": "-"}}
    for i, policy in enumerate(rest):
        found[policy] = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4.0,
            "linewidth": 1.2,
        }
    return found


def draw_goodput(tables: Mapping[str, Table], path: Path) -> Path:
    """One small picture per scenario, all runs of its first seed. Raises ScenarioError without matplotlib."""
    pyplot = _pyplot()
    looks = styles([*POLICIES, *others({p for table in tables.values() for p in table if p not in POLICIES})])
    num_rows = -(-len(tables) // NUM_COLUMNS)
    figure, grid = pyplot.subplots(num_rows, NUM_COLUMNS, figsize=(13, 1.1 + 2.9 * num_rows), squeeze=False)
    figure.suptitle("Tokens per second answered within the bound as more is offered (ours: thick black; simulated)")
    for axes in grid.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (name, table) in zip(grid.flat, tables.items(), strict=False):
        _draw_scenario(axes, name, table, looks)
    lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=5, handlelength=5, frameon=False)
    figure.tight_layout(rect=(0, 0.6 / (1.1 + 2.9 * num_rows), 1, 1))
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    _shrink(path)
    return path


def _draw_scenario(axes: Any, name: str, table: Table, looks: Mapping[str, Mapping[str, Any]]) -> None:
    seed = common_seeds(table)[0]
    for policy, runs in of_seed(table, seed).items():
        line = sorted(runs, key=lambda run: run.requests_per_s)
        axes.plot([r.requests_per_s for r in line], [r.goodput for r in line], label=policy, **looks[policy])
    axes.set_title(f"{name}, seed {seed}", fontsize=10)
    axes.set_xlabel("offered, requests per second")
    axes.set_ylabel("in the bound, tokens/s")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)


def simulate_again(name: str, table: Table, rate: float, load: str) -> list[Outcome]:
    """Ours and the best other policy with the first seed at this rate, which is called `load`."""
    seed = common_seeds(table)[0]
    rival = POLICIES[best_other(of_seed(table, seed)).policy]()
    title = f"{name}, seed {seed}, {load}: {rate:.1f} requests per second (simulated)"
    outcomes = [engine.run(SCENARIOS[name].at_rate(rate), policy, seed) for policy in (None, rival)]
    return [replace(outcome, scenario=title) for outcome in outcomes]


def draw_in_detail(name: str, table: Table, folder: Path) -> list[Path]:
    """The simulator's own pictures at equal load, if there is such a rate, and throughput over time at the rate that
    ours served most at, which shows what becomes of the other policy there.

    Maps of an earlier call go: they may be of another policy, and the page shows all that are there."""
    runs = of_seed(table, common_seeds(table)[0])
    for old in folder.glob("map-*.png"):
        old.unlink()
    paths = []
    if (rate := equal_rate(runs)) is not None:
        paths = _draw_outcomes(simulate_again(name, table, rate, "equal load"), folder)
    with tempfile.TemporaryDirectory() as scratch:
        most = simulate_again(name, table, best(runs[OURS]).requests_per_s, "our best rate")
        drawn = {path.name: path for path in _draw_outcomes(most, Path(scratch))}
        paths.append(Path(shutil.copy(drawn["throughput.png"], folder / "throughput-at-our-best.png")))
    return paths


def _draw_outcomes(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """By the simulator, with lines that differ in more than colour."""
    pyplot = _pyplot()
    cycle = pyplot.cycler(color=["black", *COLOURS[:3]], linestyle=["-", *DASHES[:3]])
    with pyplot.rc_context({"axes.prop_cycle": cycle, "lines.linewidth": 1.8}):
        paths = write_plots(outcomes, folder)
    pyplot.close("all")
    for path in paths:
        _shrink(path)
    return paths


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ScenarioError("Pictures need matplotlib: pip install 'decentllm[plots]'.") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def _shrink(path: Path) -> None:
    """With a palette. Pillow comes with matplotlib."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
    small.save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where compare.py wrote its runs")
    parser.add_argument("--out", type=Path, default=Path("docs/scheduling"), help="folder for the pictures")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default=SHOWN, help="the one that is drawn in detail")
    arguments = parser.parse_args(argv)
    tables = compared(read(arguments.folder))
    if not tables:
        print(f"No scenario in {arguments.folder} was run with ours and another policy.", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        paths = [draw_goodput(tables, arguments.out / "goodput.png")]
        if arguments.scenario in tables:
            paths += draw_in_detail(arguments.scenario, tables[arguments.scenario], arguments.out)
    except ScenarioError as error:
        print(error, file=sys.stderr)
        return 2
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
