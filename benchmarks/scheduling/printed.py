"""What optimum.py, speed.py and changes.py printed, as sections of a page, with their sums set against the aims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kept_rows import markdown_table
from benchmarks.scheduling.optimum import PROVEN

MEAN_GAP, WORST_GAP = 0.03, 0.10
"""Aims: distance from the exact optimum."""
SPEED_AIMS_MS: Mapping[tuple[str, int], float] = {
    ("phase 1", 256): 9.0,
    ("phase 1", 1_000): 100.0,
    ("phase 1", 10_000): 2_000.0,
    ("repair", 1_000): 5.0,
    ("phase 2", 256): 0.3,
    ("phase 2", 1_000): 1.0,
    ("phase 2", 10_000): 5.0,
}
"""Aims of the median, by how a figure's name begins and the number of nodes."""


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def records(text: str) -> list[Any]:
    """The lines of JSON among what was printed."""
    return [found for line in text.splitlines() if (found := _record(line)) is not None]


def _record(line: str) -> Any:
    if not line.startswith(("{", "[")):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None  # a line of prose may begin with a link


def as_printed(text: str) -> str:
    """Its tables and prose; without JSON, with the heads of continued tables once, and with what was said in the middle
    of a table after it."""
    lines: list[str] = []
    remarks: list[str] = []
    head: tuple[str, ...] = ()
    for line in text.strip().splitlines():
        in_table = bool(lines) and lines[-1].startswith("|")
        if _record(line) is not None or (in_table and line in head and lines[-1] != head[0]):
            continue
        if in_table and line.startswith("  "):
            remarks.append(f"{lines[-1].split('|')[1].strip()}: {line.strip()}")
            continue
        lines.append(line)
        if line.startswith(("|---", "| ---")):
            head = tuple(lines[-2:])
    said = "\n".join(["```", *remarks, "```"]) if remarks else ""
    return "\n\n".join(filter(None, ["\n".join(lines).strip(), said]))


def optimum_section(text: str) -> str:
    """optimum.py's table, and its sums against the aims. Several parts' sums are put together."""
    sums = [found for found in records(text) if isinstance(found, dict) and found.get("num_pools")]
    return "\n\n".join(filter(None, [_gaps(sums), as_printed(text)]))


def _gaps(sums: Sequence[Mapping[str, float]]) -> str:
    num_pools = sum(int(part["num_pools"]) for part in sums)
    if not num_pools:
        return ""

    def over(name: str) -> tuple[float, float]:
        total = sum(part["num_pools"] * part[f"mean_{name}"] for part in sums)
        return total / num_pools, max(part[f"worst_{name}"] for part in sums)

    def row(what: str, gaps: tuple[float, float], verdict: str = "") -> list[str]:
        return [what, *(f"{100 * gap:.2f} %" for gap in gaps), verdict]

    ours = over("search_gap")
    num_complete = sum(int(part["num_complete"]) for part in sums)
    num_proven = sum(int(part.get("num_proven", 0)) for part in sums)
    verdict = "met" if ours[0] <= MEAN_GAP and ours[1] <= WORST_GAP else "missed"
    # Where the bound is loose, the optimum may be above the best found, and we further below it.
    verdict += f", but {num_pools - num_proven} are unproven" if num_proven < num_pools else ""
    aim = f"aim: {percent(MEAN_GAP)} mean, {percent(WORST_GAP)} worst: {verdict}"
    rows = [
        row("our plan below the best found", ours, aim),
        row("the same without its local search", over("paper_gap")),
        row("the proven bound above the best found", over("bound_gap")),
    ]
    said = (
        f"{num_pools} pools that can serve. In {num_proven} of them the bound proves that no layout is more than"
        f" {percent(PROVEN)} better than the best found; in {num_complete} no time limit cut the search off."
    )
    return f"{said}\n\n{markdown_table([['', 'mean', 'worst', ''], *rows])}"


def speed_section(text: str) -> str:
    """speed.py's table, and which of the aims its medians miss."""
    timings = [one for found in records(text) if isinstance(found, list) for one in found]
    return "\n\n".join(filter(None, [as_printed(text), _speeds(timings)]))


def _speeds(timings: Sequence[Mapping[str, Any]]) -> str:
    aimed = [(one, aim) for one in timings if (aim := _speed_aim(one)) is not None]
    missed = [
        f"{one['what']}, {one['num_nodes']} nodes: {one['p50_ms']:.2f} ms (aim {aim:g} ms)"
        for one, aim in aimed
        if one["p50_ms"] >= aim
    ]
    if not aimed:
        return ""
    return f"Aims (medians): {len(aimed) - len(missed)} of {len(aimed)} met. Missed: {'; '.join(missed) or 'none'}."


def _speed_aim(one: Mapping[str, Any]) -> float | None:
    aims = (ms for (what, num), ms in SPEED_AIMS_MS.items() if one["what"].startswith(what) and one["num_nodes"] == num)
    return next(aims, None)
