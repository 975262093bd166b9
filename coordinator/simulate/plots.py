"""Pictures of an outcome: layers and nodes, latency, throughput over time. Needs matplotlib, asked for when used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.simulate.errors import ScenarioError
from coordinator.simulate.outcome import Held, Outcome

MAX_ROWS = 400
"""Of the map; beyond, every n-th device is shown."""


def write_plots(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Writes `map-POLICY.png` for each outcome, `latency.png` and `throughput.png`; returns their paths.

    Raises ScenarioError if matplotlib is not installed, OSError if the folder cannot be written."""
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_save(_map(pyplot, outcome), folder / f"map-{outcome.policy}.png") for outcome in outcomes]
    paths.append(_save(_latency(pyplot, outcomes), folder / "latency.png"))
    paths.append(_save(_throughput(pyplot, outcomes), folder / "throughput.png"))
    return paths


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ScenarioError("Plots need matplotlib: pip install matplotlib, or leave --out away.") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    figure.clear()
    return path


def _map(pyplot: Any, outcome: Outcome) -> Any:
    """One line per device from its first to its last layer, grouped by region, coloured by how busy it was."""
    rows = sorted(outcome.held, key=lambda row: (row.model, row.region, row.start, row.stop, row.node))
    rows = rows[:: -(-len(rows) // MAX_ROWS) or 1]
    figure, axes = pyplot.subplots(figsize=(9, 2 + min(10.0, len(rows) * 0.12)))
    colours = [pyplot.cm.viridis(min(1.0, row.utilisation)) for row in rows]
    axes.barh(range(len(rows)), [row.stop - row.start for row in rows], left=[row.start for row in rows], color=colours)
    axes.set_yticks(*_region_ticks(rows))
    axes.set_xlabel("layers")
    axes.set_title(f"{outcome.scenario}, {outcome.policy}: who holds what (dark: idle, bright: busy)")
    return figure


def _region_ticks(rows: Sequence[Held]) -> tuple[list[int], list[str]]:
    """A label where a model's part in a region begins."""
    groups = [(row.model, row.region) for row in rows]
    firsts = [i for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    return firsts, [f"{groups[i][1]}: {groups[i][0]}" for i in firsts]


def _latency(pyplot: Any, outcomes: Sequence[Outcome]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for outcome in outcomes:
        num = len(outcome.latencies_s)
        axes.plot(outcome.latencies_s, [(i + 1) / num for i in range(num)], label=outcome.policy)
    axes.set_xlabel("latency of a request, s")
    axes.set_ylabel("share of requests")
    axes.set_title(outcomes[0].scenario if outcomes else "")
    axes.legend()
    return figure


def _throughput(pyplot: Any, outcomes: Sequence[Outcome]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for outcome in outcomes:
        times = [moment.at_s for moment in outcome.series]
        axes.plot(times, [moment.tokens_per_s for moment in outcome.series], label=outcome.policy)
    axes.set_xlabel("time, s")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.set_title(outcomes[0].scenario if outcomes else "")
    axes.legend()
    return figure
