"""Row "prefix": a long answer's chain of four stages loses one. How much of the prefix does nobody compute again?"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from benchmarks.recovery.effort import Effort
from benchmarks.recovery.faults import Fault
from benchmarks.recovery.pools import NUM_LAYERS, Rig, rig
from benchmarks.recovery.report import Aim, RecoveryRow
from benchmarks.recovery.trials import Known, Moment, Trial, learn, total, trial

NAMES = ("one", "two", "three", "four", "five")
NUM_STAGES = 4
SENTENCE = "There was once a miller who was poor, but he had a beautiful daughter. "
NUM_ROWS = 2000
NUM_TOKENS = 40
LEAST_SAVED = 0.7
NUM_PREFIXES = 3


class Saved(msgspec.Struct, frozen=True):
    """Of one recovery. Costs are rows times layers; `full_s` is the undisturbed time to the first token."""

    num_rows: int
    num_layers: int
    """Of the stage that was replaced."""
    computed: int
    gap_s: float
    full_s: float

    @property
    def share(self) -> float:
        return 1.0 - self.computed / (self.num_rows * NUM_LAYERS)

    @property
    def share_of_time(self) -> float:
        return 1.0 - self.gap_s / self.full_s


def prefix(effort: Effort) -> RecoveryRow:
    """One of the two nodes that hold the same layers dies."""
    rng = random.Random(effort.seed)
    with rig(effort.scratch / "prefix", effort.model, NAMES, "--max-layers", str(-(-NUM_LAYERS // NUM_STAGES))) as made:
        known = learn(made, content_of(made, NUM_ROWS), NUM_TOKENS)
        tried = [_one(made, known, rng) for _ in range(effort.most(NUM_PREFIXES))]
    saved = [each for _, each in tried if each is not None]
    least = min((each.share for each in saved), default=0.0)
    mean_time = statistics.fmean(each.share_of_time for each in saved)
    return RecoveryRow(
        name="prefix",
        what=f"SIGKILL of one node of a chain of {NUM_STAGES} in decode, {NUM_ROWS:,} rows in; a fifth node holds the"
        " same layers. Rows that nodes have computed are their own counts (GET /pool), times the layers of each.",
        aims=(
            Aim(
                f"recovered prefix of {NUM_ROWS:,} tokens on {NUM_STAGES} stages: recompute avoided by surviving KV",
                "at least 70 %",
                f"{100 * least:.1f} % of rows x layers ({100 * mean_time:.0f} % of the seconds)",
                least >= LEAST_SAVED,
            ),
        ),
        tally=total(each for each, _ in tried),
        table=_table(saved),
        raw={"saved": msgspec.to_builtins(saved)},
    )


def _table(saved: Sequence[Saved]) -> tuple[tuple[str, ...], ...]:
    head = ("rows of prompt and answer", "layers replaced", "rows x layers anew", "of", "saved", "gap", "full prefill")
    rows = [
        (
            str(each.num_rows),
            f"{each.num_layers} of {NUM_LAYERS}",
            f"{each.computed:,}",
            f"{each.num_rows * NUM_LAYERS:,}",
            f"{100 * each.share:.1f} %",
            f"{each.gap_s:.2f} s",
            f"{each.full_s:.2f} s",
        )
        for each in saved
    ]
    return (head, *rows)


def _one(made: Rig, known: Known, rng: random.Random) -> tuple[Trial, Saved | None]:
    made.wait_whole()
    layers, before = made.layers(), prompt_rows(made)
    done = trial(made, known, Fault.KILL_NODE, Moment.DECODE, rng)
    if done.found is None:
        return done, None
    first, last = done.heard.chains[0].nodes, done.heard.chains[-1].nodes
    after = prompt_rows(made)
    num_prompt = done.heard.num_prompt_tokens - done.heard.num_cached_tokens
    anew = {n: after[n] - before[n] - (num_prompt if n in first else 0) for n in last}
    computed = sum(num_rows * width(layers[name]) for name, num_rows in anew.items())
    replaced = sum(width(layers[name]) for name in last if name not in first)
    return done, Saved(done.found.num_rows, replaced, computed, done.found.gap_s, known.prompt_s)


def prompt_rows(made: Rig) -> Mapping[str, int]:
    """That each node has computed, those after a change of the chain included."""
    return {node["name"]: node["num_prompt_tokens"] for node in made.pool.state()["nodes"]}


def width(layers: str) -> int:
    """How many "5-9" are."""
    first, _, last = layers.partition("-")
    return int(last or first) - int(first) + 1


def content_of(made: Rig, num_rows: int) -> str:
    """A text of about so many tokens."""
    few, more = (made.ask(SENTENCE * number, 1).num_prompt_tokens for number in (1, 11))
    per_sentence = (more - few) / 10
    return SENTENCE * (1 + round((num_rows - few) / per_sentence))
