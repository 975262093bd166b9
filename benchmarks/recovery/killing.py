"""Rows "kill" and "hang": a stage dies or stops in decode, and another node holds its layers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.recovery.counting import Recovery, quantile
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.faults import Fault
from benchmarks.recovery.pools import NUM_LAYERS, Rig, rig
from benchmarks.recovery.report import Aim, RecoveryRow, in_ms
from benchmarks.recovery.trials import Moment, Trial, learn, total, trial

NAMES = ("one", "two", "three", "four")
HALF = NUM_LAYERS // 2
QUESTION = "Once upon a time there was a king with three daughters and"
LONG_QUESTION = "Tell it again, from the very beginning. " * 20 + QUESTION
NUM_TOKENS = 32
NUM_KILLS, NUM_HANGS = 30, 12
NUM_PER_POOL = 6
"""A node that breaks again and again is on probation for longer each time (departed.py): then a new pool."""
KILL_P50_S, KILL_P99_S, HANG_S = 0.150, 0.500, 1.5


def kill(effort: Effort) -> RecoveryRow:
    """A worker dies, or a whole node."""
    row_s, trials = repeated(effort, "kill", (Fault.KILL_WORKER, Fault.KILL_NODE), NUM_KILLS)
    found = [t.found for t in trials if t.found is not None]
    rest = [r.gap_s - recompute_s(r, row_s) for r in found]
    seen = f"{in_ms(statistics.median(rest))} / {in_ms(quantile(rest, 0.99))}"
    is_met = statistics.median(rest) < KILL_P50_S and quantile(rest, 0.99) < KILL_P99_S
    return RecoveryRow(
        name="kill",
        what="SIGKILL of a worker, or of agent and worker, at a random token of an answer over two stages; another node"
        " holds the same layers. From the signal to the first token of the new chain, as the user sees it.",
        aims=(
            Aim(
                "SIGKILL of a stage to the next streamed token, less the replaced stage's recompute, p50 / p99",
                "under 150 ms / 500 ms",
                seen,
                is_met,
            ),
        ),
        tally=total(trials),
        table=parts_table(found, row_s),
        raw={"recoveries": msgspec.to_builtins(found), "prompt_row_layer_s": row_s},
    )


def hang(effort: Effort) -> RecoveryRow:
    """A worker stops without dying, or a whole node."""
    row_s, trials = repeated(effort, "hang", (Fault.STOP_WORKER, Fault.STOP_NODE), NUM_HANGS)
    found = [t.found for t in trials if t.found is not None]
    longest = max(r.gap_s for r in found)
    return RecoveryRow(
        name="hang",
        what="SIGSTOP of a worker, or of agent and worker: connections stay open and kernels answer. Else as `kill`.",
        aims=(Aim("the same for a hang (SIGSTOP), longest", "under 1.5 s", f"{longest:.2f} s", longest < HANG_S),),
        tally=total(trials),
        table=parts_table(found, row_s),
        raw={"recoveries": msgspec.to_builtins(found), "prompt_row_layer_s": row_s},
    )


def repeated(effort: Effort, name: str, faults: Sequence[Fault], num: int) -> tuple[float, list[Trial]]:
    """What a row of a prompt costs on one layer, and so many trials in decode, one kind after the other."""
    rng, trials, row_s = random.Random(effort.seed), [], 0.0
    for first in range(0, effort.most(num), NUM_PER_POOL):
        with rig(effort.scratch / f"{name}-{first}", effort.model, NAMES, "--max-layers", str(HALF)) as made:
            row_s = row_s or prompt_row_s(made)
            known = learn(made, QUESTION, NUM_TOKENS)
            numbers = range(first, min(first + NUM_PER_POOL, effort.most(num)))
            trials += [trial(made, known, faults[n % len(faults)], Moment.DECODE, rng) for n in numbers]
    return row_s, trials


# ---------------------------------------------------------------- where the time goes


def prompt_row_s(made: Rig) -> float:
    """What a row of a prompt costs on one layer here: the difference of two undisturbed prompts' times, by rows and
    layers. Each is asked twice, and the second time counts."""
    short, long = (_prompt(made, content) for content in (QUESTION, LONG_QUESTION))
    return (long[1] - short[1]) / (long[0] - short[0]) / NUM_LAYERS


def _prompt(made: Rig, content: str) -> tuple[int, float]:
    """(rows, seconds to the first token)."""
    known = [learn(made, content, 1) for _ in range(2)]
    return made.ask(content, 1).num_prompt_tokens, min(each.prompt_s for each in known)


def recompute_s(found: Recovery, row_s: float) -> float:
    """What the replaced stage computes anew, at the speed of a prompt."""
    return found.num_rows * HALF * row_s


def parts_table(found: Sequence[Recovery], row_s: float) -> tuple[tuple[str, ...], ...]:
    """By kind of fault: the gap, and its parts' medians."""
    head = ("fault", "times", "gap p50", "p99", "until the new chain is known", "usual gap", "recompute", "else")
    rows: list[tuple[str, ...]] = [head]
    for what in sorted({each.what for each in found}):
        of_kind = [each for each in found if each.what == what]
        gaps = [each.gap_s for each in of_kind]
        parts = [(r.until_chain_s, r.usual_s, recompute_s(r, row_s)) for r in of_kind]
        medians = [statistics.median(part) for part in zip(*parts, strict=True)]
        rest = statistics.median(g - sum(p) for g, p in zip(gaps, parts, strict=True))
        values = (statistics.median(gaps), quantile(gaps, 0.99), *medians, rest)
        rows.append((what, str(len(of_kind)), *map(in_ms, values)))
    return tuple(rows)
