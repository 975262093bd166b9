"""An outcome for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from coordinator.simulate.outcome import Outcome, Spread

Row = tuple[str, ...]


def table(outcomes: Sequence[Outcome]) -> str:
    """One column per outcome, so that policies stand side by side."""
    columns = [_column(outcome) for outcome in outcomes]
    rows: list[Row] = [
        (label, *(column[i][1] for column in columns)) for i, (label, _) in enumerate(columns[0] if columns else [])
    ]
    return aligned(rows)


def aligned(rows: Sequence[Row]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines)


def to_json(outcome: Outcome) -> str:
    """Every figure, the time series and the map."""
    return json.dumps(asdict(outcome), indent=1)


def _column(outcome: Outcome) -> list[tuple[str, str]]:
    return [
        ("scenario", outcome.scenario),
        ("policy, seed", f"{outcome.policy}, {outcome.seed}"),
        ("offered, requests/s", f"{outcome.requests_per_s:g}"),
        ("goodput, tokens/s", f"{outcome.goodput_tokens_per_s:,.1f}"),
        ("all tokens/s", f"{outcome.tokens_per_s:,.1f}"),
        ("answers within the bound", f"{outcome.share_in_bound:.1%}"),
        ("latency, s: mean, p50, p99", _times(outcome.latency_s, 1.0)),
        ("TTFT, s: mean, p50, p99", _times(outcome.ttft_s, 1.0)),
        ("TPOT, ms: mean, p50, p99", _times(outcome.tpot_s, 1e3)),
        ("requests arrived", str(outcome.num_arrived)),
        ("finished", str(outcome.num_finished)),
        ("refused", str(outcome.num_refused)),
        ("broken off", str(outcome.num_failed)),
        ("unfinished", str(outcome.num_unfinished)),
        ("replays", str(outcome.num_restarted)),
        ("longest silence, s", f"{outcome.longest_gap_s:.1f}"),
        *((f"GB moved: {cause}", f"{num / 1e9:,.1f}") for cause, num in _moved(outcome)),
        ("devices with a slice", str(len(outcome.held))),
        ("their mean utilisation", f"{outcome.mean_utilisation:.1%}"),
    ]


def _moved(outcome: Outcome) -> list[tuple[str, float]]:
    return [(cause, outcome.bytes_moved.get(cause, 0.0)) for cause in ("join", "leave", "re-plan")]


def _times(values: Spread, factor: float) -> str:
    return ", ".join(f"{value * factor:,.2f}" for value in (values.mean, values.p50, values.p99))
