"""What a row found: a JSON file with everything, and its part of the page docs/claims.md."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.kept_rows import keep_row, kept_rows, markdown_table
from benchmarks.machine import describe_machine

RESULTS = Path("benchmarks/claims/results")
PAGE = Path("docs/claims.md")


class Kind(StrEnum):
    """Where a figure comes from."""

    REAL = "real"
    """Machines of their own, joined by the internet."""
    EMULATED = "emulated"
    """Real programs and real TCP on one machine: the network's delays, rates and losses and the nodes' speeds are
    made."""
    SIMULATED = "simulated"
    """The scheduler alone is real."""


KIND_MEANS = {
    Kind.REAL: "machines of their own over the internet",
    Kind.EMULATED: "real programs and real TCP on one machine; delays, rates, losses and node speeds are made",
    Kind.SIMULATED: "the real scheduler in a simulated pool",
}


class RowResult(msgspec.Struct, frozen=True):
    """One row of the claims. `table` has its head first; `raw` is whatever else was measured."""

    name: str
    kind: Kind
    claim: str
    found: str
    seed: int
    table: tuple[tuple[str, ...], ...]
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


def section(result: RowResult) -> str:
    """One row's part of the page."""
    command = f"python -m benchmarks.claims {result.name} --seed {result.seed}"
    return (
        f"## {result.name}\n\n{result.claim}\n\n**{result.found}**\n\n{markdown_table(result.table)}\n\n"
        f"{result.kind.capitalize()} ({KIND_MEANS[result.kind]}). `{command}`; {result.machine}.\n"
    )


def page(results: Sequence[RowResult], notes: str) -> str:
    """docs/claims.md."""
    head = "# What the scheduler claims, and what was measured\n"
    return "\n".join([head, notes, *map(section, results)])
