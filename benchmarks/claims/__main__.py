"""`python -m benchmarks.claims ROW...`: measure rows of docs/claims.md.

Needs root and /dev/net/tun for an emulated network. Every row writes its figures to benchmarks/claims/results;
`page` writes docs/claims.md from those that are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.claims.calibration import calibration
from benchmarks.claims.degrading import degrade
from benchmarks.claims.internet import PoolOnTheInternet, internet
from benchmarks.claims.playing import Effort
from benchmarks.claims.report import PAGE, RESULTS, Kind, RowResult, finished, keep, kept, page
from benchmarks.claims.rows import balance, cost, elasticity, low_bandwidth, two_phases
from benchmarks.claims.tiny_model import make_tiny_model
from benchmarks.kept_rows import markdown_table
from benchmarks.network import why_not

ROWS: dict[str, Callable[[Effort], RowResult]] = {
    "two-phases": two_phases,
    "low-bandwidth": low_bandwidth,
    "degrade": degrade,
    "balance": balance,
    "elasticity": elasticity,
    "cost": cost,
    "calibration": calibration,
}
"""Those that one machine can measure."""
INTERNET = "internet"
WRITE_PAGE = "page"
NOTES = f"""Each row has a command that measures it again. Two words say where figures come from: **{Kind.EMULATED}**
is real programs and real TCP on one machine, with network and node speeds made (`benchmarks/network`,
`decentllm node run --pace`); **{Kind.REAL}** is machines of their own. The model costs next to nothing to compute and
its rows are as wide as a real one's, so that times are those of paces and links. Machines of volunteers over the
internet were not available: `python -m benchmarks.claims internet --help` would measure them.

`two-phases`, `degrade`, `balance` and `elasticity` were measured on a machine that did nothing else, `low-bandwidth`
and `cost` beside a simulation of low priority, the pool's processes first (`nice -n -15`).

`two-phases`: of loads of a minute each, the throughput of policies whose time per token is near the bound of 250 ms
swings from run to run (`parallax-greedy-dp` had 30.3, 57.7 and 32.7 tokens/s in three runs, `petals` 14.1 and 35.4,
ours 64.1, 64.3 and 54.4): the best other was `parallax-greedy-dp` in one, `hexgen` in another. Past the bound ours goes
on to serve more: 98.6 tokens/s with all of 159 requests answered at 3.2 requests/s, when the best other (`hexgen`) has
91.1 and `petals` 72.2; no policy has a node that computes for more than 70 % of the time there. With
nodes idle for a third of the time and more, what is left of the time per token is waiting: for links, for steps that
have begun without the row, and for the two processors that play all nodes (57 to 88 % busy at these loads). The aim of
2.1 is reached against `parallax-dp-rr` (3.2 times), not against `helix` and `parallax-greedy-dp` (1.7), `petals` (1.5)
and `hexgen` (1.02).

In `low-bandwidth` a prompt of 1,000 tokens takes 3.3 s on each uplink: next to nothing is answered
within the bound by anybody, so that its throughput says little; latency is at 0.2 requests/s.
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    rows = list(dict.fromkeys(arguments.rows))
    if rows == [WRITE_PAGE]:
        PAGE.write_text(page(kept([*ROWS, INTERNET], arguments.results), NOTES), encoding="utf-8")
        return 0
    if rows == [INTERNET]:
        return _show(_internet(arguments), arguments.results)
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as temporary:
        model = make_tiny_model(Path(temporary) / "model")
        for row in rows:
            scratch = Path(temporary) / row
            policies = tuple(filter(None, arguments.policies.split(",")))
            _show(ROWS[row](Effort(arguments.seed, arguments.seconds, model, scratch, policies)), arguments.results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, INTERNET, WRITE_PAGE]
    parser.add_argument("rows", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--policies", default="", help="names with commas between them (default: those of the row)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for figures")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder for weights and logs (default: temporary)")
    internet_only = parser.add_argument_group("internet", "a pool that runs elsewhere")
    internet_only.add_argument("--link", default="", help="its join link")
    internet_only.add_argument("--key", default="", help="an API key, if it is not open")
    internet_only.add_argument("--model", default="", help="default: the first that is ready")
    internet_only.add_argument("--rate", type=float, default=0.1, help="requests per second")
    return parser


def _internet(arguments: argparse.Namespace) -> RowResult:
    pool = PoolOnTheInternet(
        arguments.link, arguments.key, arguments.model, arguments.rate, arguments.seconds, arguments.seed
    )
    return internet(pool)


def _show(result: RowResult, folder: Path) -> int:
    done = finished(result)
    print(f"{done.found}\n\n{markdown_table(done.table)}\n\n{keep(done, folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
