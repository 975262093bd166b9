"""What a row found: a JSON file with everything, and its part of the page docs/endurance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.kept_rows import keep_row, kept_rows, markdown_table
from benchmarks.machine import describe_machine

RESULTS = Path("benchmarks/endurance/results")
PAGE = Path("docs/endurance.md")
MARKER = "<!-- What follows is written by hand. -->"
"""Everything above it is made from the results."""
HEAD = """# Endurance: faults for a long time, a coordinator that is killed, and many streams and nodes

Real processes on one machine: a coordinator (`serve`), agents, clients that stream and compare every answer. In place
of torch, workers run a toy model whose every token depends on all rows that any stage has kept: a lost, repeated or
misplaced token changes the answer. Each part has the command that measures it again (`benchmarks/endurance`).
"""


class Aim(msgspec.Struct, frozen=True):
    """One line of a row's table."""

    measure: str
    aim: str
    found: str
    is_met: bool


class RowResult(msgspec.Struct, frozen=True):
    """One row of the page. `counts` is a second table, its head first; `raw` is whatever else was measured."""

    name: str
    title: str
    what: str
    command: str
    aims: tuple[Aim, ...]
    counts: tuple[tuple[str, ...], ...]
    raw: dict[str, Any]
    machine: str = ""


def finished(result: RowResult) -> RowResult:
    """With the machine that it was measured on."""
    return msgspec.structs.replace(result, machine=describe_machine())


def keep(result: RowResult, folder: Path = RESULTS) -> Path:
    """Write it to a file named after the row; returns the file."""
    return keep_row(result, folder)


def kept(names: Sequence[str], folder: Path = RESULTS) -> list[RowResult]:
    """Those that are there, in this order."""
    return kept_rows(names, folder, RowResult)


def aims_table(aims: Sequence[Aim]) -> tuple[tuple[str, ...], ...]:
    rows = [(aim.measure, aim.aim, aim.found, "yes" if aim.is_met else "**no**") for aim in aims]
    return (("measure", "aim", "found", "met"), *rows)


def section(result: RowResult) -> str:
    """One row's part of the page."""
    tables = [markdown_table(table) for table in (aims_table(result.aims), result.counts) if len(table) > 1]
    return "\n\n".join([f"## {result.title}", result.what, *tables, f"`{result.command}`; {result.machine}."]) + "\n"


def page(results: Sequence[RowResult], before: str) -> str:
    """docs/endurance.md. What was written by hand under the marker in `before` stays."""
    by_hand = before.partition(MARKER)[2].strip()
    parts = [HEAD, *map(section, results), MARKER]
    return "\n".join([*parts, "", by_hand, ""] if by_hand else [*parts, ""])
