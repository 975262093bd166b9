"""Rows "kill" and "hang": a stage dies or stops in decode, and another node holds its layers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.recovery.counting import Recovery, quantile
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.faults import Fault
from benchmarks.recovery.pools import Rig, rig
from benchmarks.recovery.report import Aim, RecoveryRow, in_ms
from benchmarks.recovery.subjects import REAL, TINY, Subject, real, tiny
from benchmarks.recovery.trials import Moment, Trial, learn, total, trial

NAMES = ("one", "two", "three", "four")
QUESTION = "Once upon a time there was a king with three daughters and"
LONG_QUESTION = "Tell it again, from the very beginning. " * 20 + QUESTION
NUM_TOKENS = {TINY: 300, REAL: 32}
"""Long enough for a fault in the middle: a token of the tiny model takes some milliseconds."""
NUM_KILLS, NUM_HANGS = 30, 12
NUM_PER_POOL = 6
"""A node that breaks again and again is on probation for longer each time (departed.py): then a new pool."""
KILL_P50_S, KILL_P99_S, HANG_S = 0.150, 0.500, 1.5


@dataclass(frozen=True, slots=True)
class Tried:
    """Trials with one model. `row_s`: what a row of a prompt costs on half of its layers, in a prompt."""

    subject: Subject
    row_s: float
    trials: tuple[Trial, ...]

    @property
    def found(self) -> list[Recovery]:
        return [each.found for each in self.trials if each.found is not None]

    def recompute_s(self, found: Recovery) -> float:
        """What the replaced stage computes anew, at the speed of a prompt."""
        return found.num_rows * self.row_s


def kill(effort: Effort) -> RecoveryRow:
    """A worker dies, or a whole node."""
    tried = _with_both(effort, "kill", (Fault.KILL_WORKER, Fault.KILL_NODE), NUM_KILLS)
    what = (
        "SIGKILL of a worker, or of agent and worker, at a random token of an answer over two stages; another node"
        " holds the same layers. From the signal to the first token of the new chain, as the user sees it. The tiny"
        " model costs next to nothing to compute, so it shows what the pool itself takes."
    )
    return _row("kill", what, tried, [_kill_aim(each) for each in tried])


def hang(effort: Effort) -> RecoveryRow:
    """A worker stops without dying, or a whole node."""
    tried = _with_both(effort, "hang", (Fault.STOP_WORKER, Fault.STOP_NODE), NUM_HANGS)
    what = "SIGSTOP of a worker, or of agent and worker: connections stay open and kernels answer. Else as `kill`."
    return _row("hang", what, tried, [_hang_aim(each) for each in tried])


def _with_both(effort: Effort, name: str, faults: Sequence[Fault], num: int) -> list[Tried]:
    return [repeated(effort, subject, name, faults, num) for subject in (tiny(effort), real(effort))]


def _kill_aim(tried: Tried) -> Aim:
    rest = [each.gap_s - tried.recompute_s(each) for each in tried.found]
    p50_s, p99_s = statistics.median(rest), quantile(rest, 0.99)
    measure = (
        f"SIGKILL of a stage of the {tried.subject.name} model to the next streamed token, less the replaced stage's"
        " recompute, p50 / p99"
    )
    is_met = p50_s < KILL_P50_S and p99_s < KILL_P99_S
    return Aim(measure, "under 150 ms / 500 ms", f"{in_ms(p50_s)} / {in_ms(p99_s)}", is_met)


def _hang_aim(tried: Tried) -> Aim:
    longest_s = max(each.gap_s for each in tried.found)
    measure = f"the same for a hang (SIGSTOP), {tried.subject.name} model, longest"
    return Aim(measure, "under 1.5 s", f"{longest_s:.2f} s", longest_s < HANG_S)


def _row(name: str, what: str, tried: Sequence[Tried], aims: Sequence[Aim]) -> RecoveryRow:
    raw = {
        each.subject.name: {"recoveries": msgspec.to_builtins(each.found), "prompt_row_s": each.row_s} for each in tried
    }
    trials = [trial for each in tried for trial in each.trials]
    return RecoveryRow(
        name=name, what=what, aims=tuple(aims), tally=total(trials), table=parts_table(tried), raw={"models": raw}
    )


def repeated(effort: Effort, subject: Subject, name: str, faults: Sequence[Fault], num: int) -> Tried:
    """So many trials in decode, one kind of fault after the other."""
    rng, trials, row_s, num_tokens = random.Random(effort.seed), [], 0.0, NUM_TOKENS[subject.name]
    options = ("--max-layers", str(subject.num_layers // 2))
    for first in range(0, effort.most(num), NUM_PER_POOL):
        with rig(effort.scratch / f"{name}-{subject.name}-{first}", subject.folder, NAMES, *options) as made:
            row_s = row_s or prompt_row_s(made)
            known = learn(made, QUESTION, num_tokens)
            numbers = range(first, min(first + NUM_PER_POOL, effort.most(num)))
            trials += [trial(made, known, faults[n % len(faults)], Moment.DECODE, rng) for n in numbers]
    return Tried(subject, row_s, tuple(trials))


# ---------------------------------------------------------------- where the time goes


def prompt_row_s(made: Rig) -> float:
    """What a row of a prompt costs on half of the layers here: half of the difference of two undisturbed prompts'
    times, by rows. Each is asked twice, and the second time counts."""
    short, long = (_prompt(made, content) for content in (QUESTION, LONG_QUESTION))
    return (long[1] - short[1]) / (long[0] - short[0]) / 2


def _prompt(made: Rig, content: str) -> tuple[int, float]:
    """(rows, seconds to the first token)."""
    known = [learn(made, content, 1) for _ in range(2)]
    return made.ask(content, 1).num_prompt_tokens, min(each.prompt_s for each in known)


def parts_table(tried: Iterable[Tried]) -> tuple[tuple[str, ...], ...]:
    """By model and kind of fault: the gap, and its parts' medians."""
    head = ("model", "fault", "times", "gap p50", "p99", "until the new chain is known", "usual gap", "recompute",
            "else")  # fmt: skip
    rows = [_parts(each, what) for each in tried for what in sorted({found.what for found in each.found})]
    return (head, *rows)


def _parts(tried: Tried, what: str) -> tuple[str, ...]:
    found = [each for each in tried.found if each.what == what]
    gaps = [each.gap_s for each in found]
    parts = [(r.until_chain_s, r.usual_s, tried.recompute_s(r)) for r in found]
    medians = [statistics.median(part) for part in zip(*parts, strict=True)]
    rest = statistics.median(g - sum(p) for g, p in zip(gaps, parts, strict=True))
    values = (statistics.median(gaps), quantile(gaps, 0.99), *medians, rest)
    return (tried.subject.name, what, str(len(found)), *map(in_ms, values))
