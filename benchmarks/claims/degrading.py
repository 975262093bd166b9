"""A node and a link that get worse while users are served: how soon does the load go elsewhere?"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TypeVar

import psutil

from benchmarks.claims.playing import Effort, play_asks
from benchmarks.claims.policies import OURS
from benchmarks.claims.pool import EmulatedPool, emulated_pool
from benchmarks.claims.report import Kind, RowResult
from benchmarks.claims.scene import Ask, Load, equal
from benchmarks.claims.users import Answer, Change, quantile
from benchmarks.claims.watching import Started
from benchmarks.network import Link
from demo.local_pool import PoolFailed

SCENE = equal(4, max_layers=6)
LOAD = Load(0.8, 60.0)
RUN_S, PAUSE_S = 0.1, 0.3
"""A degraded node's worker is stopped for three quarters of the time, as by an owner who uses the machine."""
BAD_LINK = Link(delay_s=0.2, jitter_s=0.05, loss=0.02)
WINDOW_S = 5.0
POLICIES = (OURS, "parallax-greedy-dp", "parallax-dp-rr")

Seen = TypeVar("Seen", bound=Hashable)
Uses = Callable[[Sequence[str]], bool]
"""Whether a chain, by names, leads over what got worse."""


@dataclass(frozen=True, slots=True)
class Shift:
    """`shift_s`: from the change until the load had gone elsewhere; None: it had not by the end. Gaps between tokens
    in seconds, 99th percentile."""

    shift_s: float | None
    share_before: float
    share_after: float
    gap_before_s: float
    gap_at_s: float
    gap_after_s: float


def degrade(effort: Effort) -> RowResult:
    """Both, with each policy."""
    rows = [("what gets worse", "policy", "time to shift", "p99 gap before", "in the first 10 s", "afterwards")]
    raw: dict[str, object] = {}
    kinds = (("a node", degrade_node), ("a link", degrade_link))
    for policy, (what, play_one) in product(effort.policies or POLICIES, kinds):
        scratch = effort.scratch / what.replace(" ", "-")  # a fresh pool: it must not remember the other
        with emulated_pool(SCENE, effort.model_folder, policy, scratch, effort.seed) as pool:
            shift = play_one(pool, effort)
        rows.append((what, policy, *_cells(shift)))
        raw[f"{policy}: {what}"] = {name: getattr(shift, name) for name in Shift.__slots__}
    return RowResult(
        name="degrade",
        kind=Kind.EMULATED,
        claim="A node whose worker is stopped for three quarters of the time, and a link that gets 200 ms slower and"
        " loses 2 % of its packets, in mid-run: new requests go elsewhere within seconds.",
        found="; ".join(f"{row[0]}, {row[1]}: {row[2]}" for row in rows[1:]),
        seed=effort.seed,
        table=tuple(rows),
        raw=raw,
    )


def _cells(shift: Shift) -> tuple[str, str, str, str]:
    time_text = "not by the end" if shift.shift_s is None else f"{shift.shift_s:.0f} s"
    before, at_change, after = (
        f"{1000 * gap:.0f} ms" for gap in (shift.gap_before_s, shift.gap_at_s, shift.gap_after_s)
    )
    return time_text, before, at_change, after


def degrade_node(pool: EmulatedPool, effort: Effort) -> Shift:
    """The node that the load uses most."""
    asks, at_s = _asks(effort)
    found: list[str] = []
    with contextlib.ExitStack() as until_the_end:

        def stop_now() -> None:
            found.append(commonest([chain[0] for chain in _chains(pool)]))
            until_the_end.enter_context(stuttering(pool.worker_of(found[0])))

        answers, _, _ = play_asks(pool, asks, [Change(at_s, stop_now)])
    return shift_of(answers, at_s, effort.load_s, lambda chain: found[0] in chain)


def degrade_link(pool: EmulatedPool, effort: Effort) -> Shift:
    """The link that the load uses most, in both directions."""
    asks, at_s = _asks(effort)
    found: list[tuple[str, str]] = []

    def spoil_now() -> None:
        found.append(commonest([(chain[0], chain[1]) for chain in _chains(pool) if len(chain) > 1]))
        pool.network.set_link(*found[0], BAD_LINK)

    answers, _, _ = play_asks(pool, asks, [Change(at_s, spoil_now)])
    pool.network.set_link(*found[0], pool.scene.topology.link(*found[0]))
    return shift_of(answers, at_s, effort.load_s, partial(_has_link, *found[0]))


@contextlib.contextmanager
def stuttering(worker: psutil.Process) -> Iterator[None]:
    """The process is stopped and goes on, again and again; at the end it goes on."""
    is_over = threading.Event()

    def stutter() -> None:
        while not is_over.wait(RUN_S):
            worker.suspend()
            is_over.wait(PAUSE_S)
            worker.resume()

    thread = threading.Thread(target=stutter, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


# ---------------------------------------------------------------- figures, pure


def shift_of(answers: Sequence[Answer], changed_s: float, end_s: float, uses: Uses) -> Shift:
    """From requests that arrived in [0, end_s); something got worse at `changed_s`."""
    share_before = share_using(answers, 0.0, changed_s, uses)
    return Shift(
        shift_s=time_to_shift_s(answers, changed_s, end_s, uses, share_before / 2),
        share_before=share_before,
        share_after=share_using(answers, (changed_s + end_s) / 2, end_s, uses),
        gap_before_s=quantile(gaps_s(answers, 0.0, changed_s), 0.99),
        gap_at_s=quantile(gaps_s(answers, changed_s, changed_s + 10.0), 0.99),
        gap_after_s=quantile(gaps_s(answers, (changed_s + end_s) / 2, float("inf")), 0.99),
    )


def share_using(answers: Sequence[Answer], from_s: float, until_s: float, uses: Uses) -> float:
    """Of the requests that arrived then and got a chain."""
    begun = [answer for answer in answers if from_s <= answer.ask.at_s < until_s and answer.nodes]
    return sum(uses(answer.nodes) for answer in begun) / len(begun) if begun else 0.0


def time_to_shift_s(answers: Sequence[Answer], changed_s: float, end_s: float, uses: Uses, most: float) -> float | None:
    """The end of the last window in which a larger share than `most` used it; None if that is the run's last."""
    start_s, shift_s = changed_s, 0.0
    while start_s + WINDOW_S <= end_s:
        if share_using(answers, start_s, start_s + WINDOW_S, uses) > most:
            shift_s = start_s + WINDOW_S - changed_s
        start_s += 1.0
    return shift_s if shift_s < end_s - changed_s - 1.0 else None


def gaps_s(answers: Sequence[Answer], from_s: float, until_s: float) -> list[float]:
    """Times between two tokens of an answer, of tokens that came then."""
    return [
        after - before
        for answer in answers
        for before, after in pairwise(answer.token_times_s)
        if from_s <= after < until_s
    ]


def _asks(effort: Effort) -> tuple[list[Ask], float]:
    """The load, and when something gets worse: after a third of it."""
    load = Load(LOAD.requests_per_s, effort.load_s, 0.0, LOAD.lengths)
    return load.asks(effort.seed), effort.load_s / 3


def _chains(pool: EmulatedPool) -> list[tuple[str, ...]]:
    """Of all requests until now, by names."""
    names = pool.node_names()
    started = [note.node_ids for note in pool.notes() if isinstance(note, Started)]
    return [tuple(_name(names, node_id) for node_id in chain) for chain in started]


def _name(names: dict[str, str], node_id: str) -> str:
    return next((name for id_, name in names.items() if node_id.startswith(id_)), node_id)


def commonest(seen: Sequence[Seen]) -> Seen:
    """Raises PoolFailed if nothing was seen: the load had not begun to run."""
    if not seen:
        raise PoolFailed("no request had got a chain when something was to get worse")
    return Counter(seen).most_common(1)[0][0]


def _has_link(one: str, other: str, chain: Sequence[str]) -> bool:
    return {one, other} <= set(chain)
