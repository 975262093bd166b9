"""Row "pause": a volunteer pauses in the middle of answers, as a click pauses it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.attached_agent import AttachedAgent, wait_ended
from benchmarks.recovery.counting import Tally, longest_gap_s, tally, usual_gap_s
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.pools import READY_S, Rig, rig, serving
from benchmarks.recovery.reader import Reader
from benchmarks.recovery.report import Aim, RecoveryRow, in_ms
from benchmarks.recovery.subjects import REAL, TINY, Subject, real, tiny
from client.status import AgentState, Pause, Resume

VOLUNTEER, REPLICA = "volunteer", "replica"
OPTIONS = ("--cpu", "--pause-mode", "always", "--max-memory", "5GB")
NUM_TOKENS = {TINY: 300, REAL: 32}
NUM_PAUSES = 4
FEW, MANY = 2, 8
GAP_S, FREE_S, SOFT_FREE_S = 0.300, 2.0, 30.0
POLL_S = 0.01


class Paused(msgspec.Struct, frozen=True):
    """One pause with so many streams. Gaps are of the streams that ran on the volunteer's machine, after the click.

    `after_answers`: in no hurry, so that a stream leaves its chain when another one is warm."""

    model: str
    num_streams: int
    after_answers: bool
    num_moved: int
    longest_gap_s: float
    usual_gap_s: float
    free_s: float
    tally: Tally


def pause(effort: Effort) -> RecoveryRow:
    """Few streams several times, then many; at once, and after the answers."""
    subjects = (tiny(effort), real(effort))
    by_kind = {(of, is_soft): _pauses(effort, of, is_soft) for of in subjects for is_soft in (False, True)}
    found = [each for pauses in by_kind.values() for each in pauses]
    return RecoveryRow(
        name="pause",
        what="Two nodes with the whole model each; one is paused while answers stream. The click goes to the agent as"
        " the tray app sends it; memory is free when the worker's process has ended.",
        aims=tuple(aim for (of, is_soft), pauses in by_kind.items() for aim in _aims(of.name, is_soft, pauses)),
        tally=sum((each.tally for each in found), Tally()),
        table=_table(found),
        raw={"pauses": msgspec.to_builtins(found)},
    )


def _pauses(effort: Effort, subject: Subject, after_answers: bool) -> list[Paused]:
    """In a pool of their own: a node that leaves again and again is on probation for longer each time."""
    folder, num_tokens = effort.scratch / f"pause-{subject.name}-{after_answers}", NUM_TOKENS[subject.name]
    with _volunteering(subject, folder) as (made, agent):
        contents = [f"Once upon a time there was a king with {number} daughters and" for number in range(MANY)]
        expected = [reader.wait().tokens for reader in [made.reader(content, num_tokens) for content in contents]]
        counts = [FEW] * effort.most(NUM_PAUSES) + [MANY]
        return [_pause(made, agent, subject.name, contents[:num], expected[:num], after_answers) for num in counts]


def _aims(model: str, after_answers: bool, found: Sequence[Paused]) -> tuple[Aim, Aim]:
    name = f"pause {'after the current answers' if after_answers else 'at once'}, {model} model"
    most_free_s = SOFT_FREE_S if after_answers else FREE_S
    few = [each.longest_gap_s for each in found if each.num_streams == FEW and each.num_moved]
    longest_s, free_s = max(few, default=0.0), max(each.free_s for each in found)
    return (
        Aim(f"{name}: longest gap in {FEW} streams", "under 300 ms", in_ms(longest_s), longest_s < GAP_S),
        Aim(f"{name}: memory free", f"under {most_free_s:.0f} s", f"{free_s:.2f} s", free_s < most_free_s),
    )


def _table(found: Sequence[Paused]) -> tuple[tuple[str, ...], ...]:
    head = ("model", "pause", "streams", "pauses", "streams moved", "longest gap, median", "longest", "usual gap",
            "memory free")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for model, is_soft, num in sorted({(each.model, each.after_answers, each.num_streams) for each in found}):
        alike = [e for e in found if (e.model, e.after_answers, e.num_streams) == (model, is_soft, num)]
        gaps = [each.longest_gap_s for each in alike if each.num_moved]
        usual = statistics.median(each.usual_gap_s for each in alike)
        times = (statistics.median(gaps), max(gaps), usual) if gaps else (0.0, 0.0, usual)
        counts = (num, len(alike), sum(each.num_moved for each in alike))
        free = f"{max(each.free_s for each in alike):.2f} s"
        kind = "after answers" if is_soft else "at once"
        rows.append((model, kind, *map(str, counts), *map(in_ms, times), free))
    return tuple(rows)


def _pause(
    made: Rig,
    agent: AttachedAgent,
    model: str,
    contents: Sequence[str],
    expected: Sequence[Sequence[int]],
    after_answers: bool,
) -> Paused:
    num_tokens = NUM_TOKENS[model]
    readers = [made.reader(content, num_tokens) for content in contents]
    _wait_third(readers, num_tokens)
    workers = agent.last.worker_pids
    at_s = agent.send(Pause(after_answers=after_answers))
    free_s = wait_ended(workers) - at_s
    answers = [reader.wait() for reader in readers]
    moved = [heard for heard in answers if len(heard.chains) > 1]
    agent.wait_for(AgentState.SERVING, since_s=agent.send(Resume()))
    _wait_both(made)
    return Paused(
        model,
        len(readers),
        after_answers,
        len(moved),
        max((longest_gap_s(heard, at_s) for heard in moved), default=0.0),
        statistics.median(usual_gap_s(heard, at_s) for heard in answers),
        free_s,
        tally(zip(answers, expected, strict=True), len(moved)),
    )


def _wait_third(readers: Sequence[Reader], num_tokens: int) -> None:
    while sum(len(reader.heard.tokens) for reader in readers) < len(readers) * num_tokens // 3:
        time.sleep(POLL_S)


@contextmanager
def _volunteering(subject: Subject, folder: Path) -> Iterator[tuple[Rig, AttachedAgent]]:
    with (
        rig(folder, subject.folder, (), *OPTIONS[1:]) as made,
        AttachedAgent(made.pool.join_link, folder / VOLUNTEER, "--name", VOLUNTEER, *OPTIONS) as agent,
    ):
        made.add(REPLICA)
        _wait_both(made)
        yield made, agent


def _wait_both(made: Rig) -> None:
    made.pool.wait_until(lambda state: serving(state) == {VOLUNTEER, REPLICA}, READY_S)
