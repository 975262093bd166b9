"""Who holds up a session whose answer is late: the rules, in order. Pure: what stages said in, a verdict out.

A row is in one place. Where it is, and for how long, tells a worker that hangs behind a healthy connection from a node
that is gone, a cut between two nodes that are both well, and a step that only takes its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageReport:
    """`waiting_s`: for how long rows (or the order to open) have been there while nothing went on; None: not known.

    `is_asked`: it speaks a version that answers; others are never judged by their silence. `is_silent`: nothing at all
    has been heard of its node since it was asked, for longer than an answer takes, while others were heard."""

    waiting_s: float | None
    limit_s: float
    is_asked: bool = True
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class HopReport:
    """The way from a stage to the next: for how long the next one has been without what was sent to it (None: it has
    all, or that is not known)."""

    behind_s: float | None
    limit_s: float


@dataclass(frozen=True, slots=True)
class Hangs:
    """The stage's worker has rows and does nothing with them."""

    stage: int


@dataclass(frozen=True, slots=True)
class Silent:
    """The nodes of these stages answer nothing."""

    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows do not get from this stage to the next; both are well."""

    stage: int


@dataclass(frozen=True, slots=True)
class Wait:
    """It is under way: nothing is late before that many seconds from now."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody is to blame. `suspects` are stages that could not be asked."""

    suspects: tuple[int, ...] = ()


Verdict = Hangs | Silent | Cut | Wait | Unknown


def judge(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict:
    """The first rule that has something to say. `hops[i]` leads from stage i on; one stage alone has none."""
    for rule in RULES:
        verdict = rule(stages, hops)
        if verdict is not None:
            return verdict
    return Unknown(tuple(number for number, stage in enumerate(stages) if not stage.is_asked))


def _one_hangs(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict | None:
    """The first: what comes behind it waits for it."""
    late = (n for n, stage in enumerate(stages) if stage.waiting_s is not None and stage.waiting_s > stage.limit_s)
    first = next(late, None)
    return None if first is None else Hangs(first)


def _one_works(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict | None:
    """Rows are at a stage that has had them for no longer than it may: it is nobody else's fault, either."""
    left = [stage.limit_s - stage.waiting_s for stage in stages if stage.waiting_s]
    return Wait(min(left)) if left else None


def _some_are_silent(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict | None:
    silent = tuple(n for n, stage in enumerate(stages) if stage.is_asked and stage.is_silent)
    return Silent(silent) if silent else None


def _a_way_is_cut(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict | None:
    cut = next((n for n, hop in enumerate(hops) if hop.behind_s is not None and hop.behind_s > hop.limit_s), None)
    return None if cut is None else Cut(cut)


def _some_are_under_way(stages: Sequence[StageReport], hops: Sequence[HopReport]) -> Verdict | None:
    left = [hop.limit_s - hop.behind_s for hop in hops if hop.behind_s is not None]
    return Wait(min(left)) if left else None


RULES: tuple[Callable[[Sequence[StageReport], Sequence[HopReport]], Verdict | None], ...] = (
    _one_hangs,
    _one_works,
    _some_are_silent,
    _a_way_is_cut,
    _some_are_under_way,
)
