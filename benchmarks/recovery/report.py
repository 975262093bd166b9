"""What a row found: a JSON file with everything, and its part of the page docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.kept_rows import keep_row, kept_rows, markdown_table
from benchmarks.machine import describe_machine
from benchmarks.recovery.counting import Tally

RESULTS = Path("benchmarks/recovery/results")
PAGE = Path("docs/reliability.md")
BY_HAND = "<!-- From here on written by hand: `page` keeps it. -->"


class Aim(msgspec.Struct, frozen=True):
    """A line of the table that has to be shown."""

    measure: str
    wanted: str
    seen: str
    is_met: bool


class RecoveryRow(msgspec.Struct, frozen=True):
    """One row. `table` has its head first; `raw` is whatever else was measured."""

    name: str
    what: str
    aims: tuple[Aim, ...]
    tally: Tally
    table: tuple[tuple[str, ...], ...]
    raw: dict[str, Any]
    command: str = ""
    machine: str = ""


def finished(row: RecoveryRow, command: str) -> RecoveryRow:
    """With the machine that it was measured on, and how."""
    return msgspec.structs.replace(row, machine=describe_machine(), command=command)


def keep(row: RecoveryRow, folder: Path = RESULTS) -> Path:
    """Write it to a file named after the row; returns the file."""
    return keep_row(row, folder)


def kept(names: Sequence[str], folder: Path = RESULTS) -> list[RecoveryRow]:
    """Those that are there, in this order."""
    return kept_rows(names, folder, RecoveryRow)


def in_ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def page(rows: Sequence[RecoveryRow], by_hand: str) -> str:
    """docs/reliability.md."""
    head = (
        "# What faults cost\n\nReal coordinators, agents and torch workers with a real model; every answer is compared"
        " with the undisturbed greedy one, token for token, in float32. `make recovery` measures all rows and writes"
        " this page.\n"
    )
    return "\n".join([head, markdown_table(summary(rows)), "", *map(section, rows), BY_HAND, by_hand])


def summary(rows: Sequence[RecoveryRow]) -> list[tuple[str, ...]]:
    """The table that has to be shown."""
    tally = sum((row.tally for row in rows), Tally())
    wrong = f"{tally.num_wrong} of {tally.num_answers} ({tally.num_disturbed} of them hit by a fault)"
    first = (
        "answers lost, duplicated or changed over all rows",
        "0",
        wrong,
        _met(tally.num_wrong == 0) if rows else "not measured",
    )
    aims = [(aim.measure, aim.wanted, aim.seen, _met(aim.is_met)) for row in rows for aim in row.aims]
    return [("measure", "aim", "seen", ""), first, *aims]


def section(row: RecoveryRow) -> str:
    tally = row.tally
    counts = (
        f"{tally.num_answers} answers, {tally.num_disturbed} hit by a fault: {tally.num_lost} lost,"
        f" {tally.num_duplicated} duplicated, {tally.num_changed} changed."
    )
    table = markdown_table(row.table)
    return f"## {row.name}\n\n{row.what}\n\n**{counts}**\n\n{table}\n\n`{row.command}`; {row.machine}.\n"


def by_hand(path: Path = PAGE) -> str:
    """What stands below the mark on the page; nothing if there is no page or no mark."""
    return path.read_text(encoding="utf-8").partition(BY_HAND)[2].lstrip("\n") if path.exists() else ""


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"
