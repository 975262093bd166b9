"""Rows of a published table: each is measured by itself, kept as a file, and put on a page with those kept before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Row = TypeVar("Row", bound=msgspec.Struct)


def keep_row(row: Any, folder: Path) -> Path:
    """Write it to a file named after the row (`name`); returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(row), indent=1) + b"\n")
    return path


def kept_rows(names: Sequence[str], folder: Path, kind: type[Row]) -> list[Row]:
    """Those that are there, in this order."""
    paths = [folder / f"{name}.json" for name in names]
    return [msgspec.json.decode(path.read_bytes(), type=kind) for path in paths if path.exists()]


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """Its head first."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
