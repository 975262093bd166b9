"""`python -m benchmarks.recovery ROW...`: measure rows of docs/reliability.md.

Every row writes its figures to benchmarks/recovery/results; `page` writes docs/reliability.md from those that are
there. The rows `network-...` need root and /dev/net/tun.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.kept_rows import markdown_table
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.keeping import prefix
from benchmarks.recovery.killing import hang, kill
from benchmarks.recovery.network_faults import LINKS, network
from benchmarks.recovery.pausing import pause
from benchmarks.recovery.pools import MODEL
from benchmarks.recovery.report import PAGE, RESULTS, RecoveryRow, by_hand, finished, keep, kept, page
from benchmarks.recovery.restarting import restart

ROWS: dict[str, Callable[[Effort], RecoveryRow]] = {
    "kill": kill,
    "hang": hang,
    "prefix": prefix,
    "pause": pause,
    "restart": restart,
    **{f"network-{links}": partial(network, links) for links in LINKS},
}
WRITE_PAGE = "page"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    num_wrong = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as temporary:
        for name in dict.fromkeys(arguments.rows):
            if name == WRITE_PAGE:
                PAGE.write_text(page(kept(list(ROWS), arguments.results), by_hand()), encoding="utf-8")
                continue
            effort = Effort(arguments.seed, arguments.models / MODEL, Path(temporary), is_small=arguments.small)
            words = f"{name} --seed {arguments.seed}" + " --small" * arguments.small
            row = finished(ROWS[name](effort), f"python -m benchmarks.recovery {words}")
            print(f"{row.tally}\n{row.aims}\n\n{markdown_table(row.table)}\n", flush=True)
            keep(row, arguments.results)
            num_wrong += row.tally.num_wrong
    return int(num_wrong > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, WRITE_PAGE]
    parser.add_argument("rows", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a few faults of each kind, to see that it works")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for figures")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder for pools and logs (default: temporary)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
