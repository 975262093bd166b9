"""Histories of a simulated pool, from the command line.

python -m tests.simulation --seed 42             tell this history, and whether something was wrong in it
python -m tests.simulation --seeds 10000         play so many, on all cores; wrong ones are told at the end
python -m tests.simulation --mutants [NAME ...]  plant bugs, one at a time; each must be found
python -m tests.simulation --stragglers 40       what a slow or leaving node costs, with second chains and without
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence

from tests.simulation.mutants import LIMIT_CPU_S, MUTANTS, Hunt, hunt
from tests.simulation.simulation import Verdict, draw, simulate
from tests.simulation.stragglers import table

CHUNK = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if nothing was wrong (or every planted bug was found)."""
    options = _options(arguments)
    logging.disable(logging.WARNING)
    if options.mutants is not None:
        return _hunt_all(options.mutants or list(MUTANTS), options.processes)
    if options.stragglers is not None:
        return _show_stragglers(options.stragglers)
    if options.seed is not None:
        return _tell(options.seed)
    return _play(range(options.first, options.first + options.seeds), options.processes)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="tell the history of this seed")
    parser.add_argument("--seeds", type=int, default=100, help="play so many histories")
    parser.add_argument("--first", type=int, default=0, help="the first of their seeds")
    parser.add_argument("--mutants", nargs="*", choices=[*MUTANTS, []], help="plant these bugs, or all")
    parser.add_argument("--stragglers", type=int, help="so many answers each, with second chains and without")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def _tell(seed: int) -> int:
    plan = draw(seed)
    for node in plan.nodes:
        print(node)
    for user in plan.users:
        print(user)
    verdict = simulate(seed, with_lines=True)
    print(*verdict.lines, sep="\n")
    print(_sentence(verdict))
    return 1 if verdict.wrong else 0


def _show_stragglers(num_seeds: int) -> int:
    num_wrong = 0
    for line, wrong in table(num_seeds):
        print(line, flush=True)
        num_wrong += wrong
    return 1 if num_wrong else 0


def _play(seeds: range, num_processes: int) -> int:
    counts: Counter[str] = Counter()
    wrong: list[Verdict] = []
    with multiprocessing.Pool(num_processes) as processes:
        for verdict in processes.imap_unordered(simulate, seeds, CHUNK):
            counts += verdict.counts
            if verdict.wrong:
                wrong.append(verdict)
                print(_sentence(verdict), flush=True)
    print(f"{len(seeds)} histories, {len(wrong)} of them wrong.")
    print(", ".join(f"{name}: {number}" for name, number in sorted(counts.items())))
    return 1 if wrong else 0


def _hunt_all(names: Sequence[str], num_processes: int) -> int:
    with multiprocessing.Pool(num_processes) as processes:
        hunts = [_told(found) for found in processes.imap_unordered(hunt, names)]
    missed = [found.name for found in hunts if found.verdict is None]
    print(f"{len(hunts)} planted bugs, {len(missed)} of them not found: {missed}")
    return 1 if missed else 0


def _told(found: Hunt) -> Hunt:
    after = f"after {found.num_histories} histories and {found.cpu_s:.1f} s of {LIMIT_CPU_S:.0f} s"
    what = found.verdict.wrong[0][:120] if found.verdict else "NOT FOUND"
    print(f"{found.name}: {what} ({after})", flush=True)
    return found


def _sentence(verdict: Verdict) -> str:
    what = "; ".join(verdict.wrong) if verdict.wrong else "everything was as it must be"
    return f"seed {verdict.seed}: {what}"


if __name__ == "__main__":
    sys.exit(main())
