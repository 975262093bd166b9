"""What became of answers, against the undisturbed ones, and how long their users waited. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise

import msgspec

from benchmarks.recovery.reader import Heard


class Fate(StrEnum):
    WHOLE = "whole"
    """Token for token the undisturbed answer."""
    LOST = "lost"
    """It ended with an error, or too early."""
    DUPLICATED = "duplicated"
    """Some of its tokens came twice in a row, and nothing else is wrong."""
    CHANGED = "changed"


class Tally(msgspec.Struct, frozen=True):
    """Of all answers of a row. `disturbed` are those that a fault hit before their end."""

    num_answers: int = 0
    num_disturbed: int = 0
    num_lost: int = 0
    num_duplicated: int = 0
    num_changed: int = 0

    def __add__(self, other: Tally) -> Tally:
        ours, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Tally(*map(sum, zip(ours, theirs, strict=True)))

    @property
    def num_wrong(self) -> int:
        return self.num_lost + self.num_duplicated + self.num_changed


def fate(tokens: Sequence[int], expected: Sequence[int], error: str = "") -> Fate:
    """What an answer's user got, against what an undisturbed one would have got."""
    if error or (len(tokens) < len(expected) and tokens == expected[: len(tokens)]):
        return Fate.LOST
    if tokens == expected:
        return Fate.WHOLE
    return Fate.DUPLICATED if _is_doubled(tokens, expected) else Fate.CHANGED


def _is_doubled(tokens: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether one run of tokens stands there twice."""
    length = len(tokens) - len(expected)
    if length <= 0:
        return False
    starts = range(len(tokens) - 2 * length + 1)
    doubled = (s for s in starts if tokens[s : s + length] == tokens[s + length : s + 2 * length])
    return any([*tokens[:s], *tokens[s + length :]] == list(expected) for s in doubled)


def tally(answers: Iterable[tuple[Heard, Sequence[int]]], num_disturbed: int) -> Tally:
    """Of answers with what was expected of each."""
    fates = [fate(heard.tokens, list(expected), heard.error) for heard, expected in answers]
    wrong = (fates.count(kind) for kind in (Fate.LOST, Fate.DUPLICATED, Fate.CHANGED))
    return Tally(len(fates), num_disturbed, *wrong)


class Recovery(msgspec.Struct, frozen=True):
    """One fault that one answer went through. `gap_s`: from the fault to the first token of the chain after it;
    `until_chain_s` is how much of it had passed when that chain was chosen. `usual_s`: between two tokens before."""

    what: str
    gap_s: float
    until_chain_s: float
    usual_s: float
    num_rows: int
    """Prompt and tokens at that time: what a chain that keeps nothing computes."""

    @property
    def rest_s(self) -> float:
        """Opening the stages and computing what is missing."""
        return self.gap_s - self.until_chain_s


def recovery(what: str, heard: Heard, at_s: float) -> Recovery | None:
    """What a fault at this time cost; None if the answer never left its chain after it, or had ended by then."""
    chain = next((chain for chain in heard.chains if chain.at_s > at_s), None)
    token_s = next((time_s for time_s in heard.times_s if chain is not None and time_s >= chain.at_s), None)
    if chain is None or token_s is None:
        return None
    num_before = sum(time_s <= at_s for time_s in heard.times_s)
    rows = heard.num_prompt_tokens + num_before
    return Recovery(what, token_s - at_s, chain.at_s - at_s, usual_gap_s(heard, at_s), rows)


def usual_gap_s(heard: Heard, until_s: float) -> float:
    """The median time between two tokens before that; 0 where there were none."""
    gaps = [gap for gap, end_s in gaps_of(heard) if end_s <= until_s]
    return statistics.median(gaps) if gaps else 0.0


def longest_gap_s(heard: Heard, from_s: float = 0.0) -> float:
    """Of those gaps that end after that; 0 where there are none."""
    return max((gap for gap, end_s in gaps_of(heard) if end_s > from_s), default=0.0)


def gaps_of(heard: Heard) -> list[tuple[float, float]]:
    """(seconds, its end) between tokens."""
    times = heard.times_s
    return [(later - earlier, later) for earlier, later in pairwise(times)]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0
