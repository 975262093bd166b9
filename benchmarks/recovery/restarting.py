"""Row "restart": the coordinator is killed under a hundred streams and started again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.recovery.counting import Tally, quantile, tally
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.pools import Rig, rig
from benchmarks.recovery.reader import Heard, Reader
from benchmarks.recovery.report import Aim, RecoveryRow
from benchmarks.recovery.subjects import REAL, TINY, Subject, real, tiny

NODES = {"tiny": ("one", "two", "three", "four", "five", "six", "seven"), "real": ("one", "two")}
"""With the whole model each: of so many, a hundred answers run at once."""
NUM_STREAMS = {TINY: 100, REAL: 20}
NUM_TOKENS = {TINY: 200, REAL: 24}
LEAST_SEEN = 3
BACK_S = 5.0


class Restarted(msgspec.Struct, frozen=True):
    """`listens_s`: from the kill until it listens again. The others count from there to each stream's next token."""

    model: str
    num_running: int
    """When the coordinator was killed."""
    listens_s: float
    resumed_s: tuple[float, ...]
    workers_stayed: bool
    tally: Tally


def restart(effort: Effort) -> RecoveryRow:
    """With a model that costs next to nothing, which shows what the pool costs, and with the real one."""
    found = [_restart(effort.scratch, subject) for subject in (tiny(effort), real(effort))]
    num_lost = sum(each.tally.num_lost for each in found)
    lost_measure = (
        f"coordinator restart with {' and '.join(str(each.num_running) for each in found)} running streams: lost"
    )
    return RecoveryRow(
        name="restart",
        what="Resumable answers stream when the coordinator is killed and"
        " started again at once; users come back by their response's id, four times a second until they are let in."
        " The tiny model costs next to nothing to compute, so it shows what the pool itself takes."
        " A hundred answers of the real one would show two cores' speed.",
        aims=(Aim(lost_measure, "0", str(num_lost), num_lost == 0), *map(_aim, found)),
        tally=sum((each.tally for each in found), Tally()),
        table=_table(found),
        raw={"restarts": msgspec.to_builtins(found)},
    )


def _aim(each: Restarted) -> Aim:
    longest_s = max(each.resumed_s, default=0.0)
    measure = f"all {NUM_STREAMS[each.model]} of the {each.model} model resumed after it is back"
    return Aim(measure, "under 5 s", f"{longest_s:.1f} s", longest_s < BACK_S)


def _table(found: Sequence[Restarted]) -> tuple[tuple[str, ...], ...]:
    head = ("model", "running when killed", "lost", "listens again after", "next token then, p50", "p99", "longest",
            "workers stayed")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for each in found:
        times = (quantile(each.resumed_s, 0.5), quantile(each.resumed_s, 0.99), max(each.resumed_s, default=0.0))
        cells = (str(each.num_running), str(each.tally.num_lost), f"{each.listens_s:.1f} s")
        rows.append((each.model, *cells, *(f"{t:.1f} s" for t in times), "yes" if each.workers_stayed else "no"))
    return tuple(rows)


def _restart(scratch: Path, subject: Subject) -> Restarted:
    """Raises ValueError if the pool does not take all of them at once: who waits is not hit."""
    name, nodes, options = subject.name, NODES[subject.name], ("--max-layers", str(subject.num_layers))
    with rig(scratch / f"restart-{name}", subject.folder, nodes, *options) as made:
        made.ask("a first answer, so that all is warm", LEAST_SEEN)
        undisturbed = _all(_ask_all(made, name))
        workers = [made.worker_of(node) for node in nodes]
        readers = _ask_all(made, name)
        is_begun = [reader.wait_for_tokens(LEAST_SEEN) for reader in readers]
        num_running = sum(not reader.heard.is_done for reader in readers)
        killed_s = time.monotonic()
        made.pool.restart_coordinator()
        listens_s = time.monotonic()
        answers = _all(readers)
        stayed = [made.worker_of(node) for node in nodes] == workers
    if not all(is_begun) or any(heard.error for heard in undisturbed):
        raise ValueError(f"the pool refused some of {len(readers)} answers before they began")
    disturbed = [heard for heard in answers if heard.num_connections > 1 and heard.times_s[-1] > listens_s]
    resumed = tuple(next(t for t in heard.times_s if t > listens_s) - listens_s for heard in disturbed)
    counts = tally(zip(answers, (heard.tokens for heard in undisturbed), strict=True), len(disturbed))
    return Restarted(name, num_running, listens_s - killed_s, resumed, stayed, counts)


def _ask_all(made: Rig, name: str) -> list[Reader]:
    contents = [f"Story number {number}: once upon a time" for number in range(NUM_STREAMS[name])]
    return [made.reader(content, NUM_TOKENS[name], is_resumable=True) for content in contents]


def _all(readers: Sequence[Reader]) -> list[Heard]:
    return [reader.wait() for reader in readers]
