"""`python -m benchmarks.endurance ROW`: measure a row of docs/endurance.md.

Every row writes its figures to benchmarks/endurance/results; `page` writes docs/endurance.md from those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.endurance import kills as kills_row
from benchmarks.endurance import load
from benchmarks.endurance import soak as soak_row
from benchmarks.endurance.report import PAGE, RESULTS, RowResult, aims_table, finished, keep, kept, page
from benchmarks.kept_rows import markdown_table

ROWS = ("soak", "kills", "streams", "nodes")


HELP = {
    "soak": "one fault a second for a long time",
    "kills": "kill the coordinator again and again",
    "streams": "many streams at once",
    "nodes": "many connected nodes, which all come back at once",
    "page": "write docs/endurance.md",
}


NUMS = {"kills": 200, "streams": 500, "nodes": 5000}


def _kills(arguments: argparse.Namespace, scratch: Path) -> RowResult:
    return kills_row.kills(kills_row.Effort(arguments.num, arguments.seed, scratch))


def _soak(arguments: argparse.Namespace, scratch: Path) -> RowResult:
    return soak_row.soak(soak_row.Effort(arguments.minutes, arguments.seed, scratch))


def _streams(arguments: argparse.Namespace, scratch: Path) -> RowResult:
    return load.streams(load.Effort(arguments.num, arguments.seconds, scratch, arguments.rate))


def _nodes(arguments: argparse.Namespace, scratch: Path) -> RowResult:
    return load.nodes(load.Effort(arguments.num, arguments.seconds, scratch))


_RUN: dict[str, Callable[[argparse.Namespace, Path], RowResult]] = {
    "soak": _soak,
    "kills": _kills,
    "streams": _streams,
    "nodes": _nodes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 when every aim is met, else 1."""
    arguments = _parser().parse_args(argv)
    if arguments.row == "page":
        before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        PAGE.write_text(page(kept(ROWS, arguments.results), before), encoding="utf-8")
        return 0
    with _scratch(arguments.scratch) as scratch:
        result = finished(_RUN[arguments.row](arguments, scratch))
    print(f"{markdown_table(aims_table(result.aims))}\n\n{markdown_table(result.counts)}")
    print(keep(result, arguments.results))
    return 0 if all(aim.is_met for aim in result.aims) else 1


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    """The folder that was named, which is kept; else one that is gone afterwards."""
    if folder is not None:
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_subparsers(dest="row", required=True, metavar="ROW")
    for name, help_text in HELP.items():
        row = rows.add_parser(name, help=help_text)
        row.add_argument("--seed", type=int, default=1)
        row.add_argument("--results", type=Path, default=RESULTS, help="the folder for figures")
        row.add_argument(
            "--scratch", type=Path, default=None, help="a new folder for weights and logs (default: temporary)"
        )
        if name in NUMS:
            row.add_argument("--num", type=int, default=NUMS[name], help="so many")
        if name in ("streams", "nodes"):
            row.add_argument("--seconds", type=float, default=load.HOLD_S)
        if name == "streams":
            row.add_argument("--rate", type=float, default=4.0, help="tokens per second of each stream")
        if name == "soak":
            row.add_argument("--minutes", type=float, default=30.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
