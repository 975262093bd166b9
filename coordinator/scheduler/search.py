"""Local search on the cost model: change one or two lanes at a time, keep what is better, until the budget is used.

Proposals are tried many at once (drafts.py). Randomness is a seeded generator: the same problem has the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.scheduler.drafts import FILLINGS, MANY_FILLINGS, Draft, Load, drafts_of, drafts_score, expected_part
from coordinator.scheduler.forecast import Tables, score_of
from coordinator.scheduler.grouping import KV_STEPS, Grouper, layer_capacities, num_places, placed
from coordinator.scheduler.tables import Floats, Sketch

SEED = 20250926
ROUND = 48
"""Proposals that are tried at once."""
PATIENCE = 6
"""Rounds without any gain after which the search ends."""
LEAST_GAIN = 1e-6
FEW_DEVICES = 24
MOST_SPARES = 8
MOST_STAGES = 24
"""What one proposal takes in hand."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Take these lanes out, put these sketches in; spares follow."""

    removed: tuple[int, ...]
    added: tuple[Sketch, ...]


class Search:
    """Improves `drafts` in place. `spares` are offers that are in no lane."""

    def __init__(self, p: Tables, drafts: Sequence[Draft], indices: Sequence[int]) -> None:
        self.drafts = list(drafts)
        self._p = p
        self._fillings = MANY_FILLINGS if len(indices) <= FEW_DEVICES else FILLINGS
        self._random = np.random.default_rng(SEED)
        self._grouper = Grouper(p.offers, p.model)
        caps = layer_capacities(p.offers, p.model, 0.0)
        self._usable = np.array([i for i in indices if caps[i] >= 1.0], dtype=np.intp)
        self._moves: tuple[Callable[[], Proposal | None], ...] = (
            self._relocate,
            self._swap,
            self._regroup,
            self._redeal,
            self._relocate,
            self._dissolve,
            self._use_spare,
            self._reorder,
        )

    def run(self, budget: int) -> list[Draft]:
        """The best drafts found by so many proposals; fewer where nothing more is found."""
        idle_rounds = 0
        while budget > 0 and idle_rounds < PATIENCE and len(self._usable):
            size = min(ROUND, budget)
            budget -= size
            idle_rounds = 0 if self._round(size) else idle_rounds + 1
        return self.drafts

    @property
    def worth(self) -> float:
        """The objective now."""
        rates, slows = np.array([d.rate for d in self.drafts]), np.array([d.slow for d in self.drafts])
        return drafts_score(self._p, rates, slows)

    # ------------------------------------------------------------ one round

    def _round(self, size: int) -> bool:
        self._homes = {i: lane for lane, d in enumerate(self.drafts) for stage in d.sketch for i in stage}
        self._load = Load(expected_part(self._p, sum(d.rate for d in self.drafts)))
        self._spares = [i for i in self._usable.tolist() if i not in self._homes]
        self._lanes_in: dict[int, list[int]] = {}
        for lane, draft in enumerate(self.drafts):
            self._lanes_in.setdefault(self._region(draft.sketch[0][0]), []).append(lane)
        self._draws = iter(self._random.random(ROUND * 48).tolist())
        proposals = [self._moves[n % len(self._moves)]() for n in range(size)]
        return self._keep_best([q for q in proposals if q is not None])

    def _keep_best(self, proposals: list[Proposal]) -> bool:
        """Apply the proposals that gain, best first, each lane at most once a round."""
        flat = [sketch for proposal in proposals for sketch in proposal.added]
        drafts = iter(drafts_of(self._p, flat, self._load, self._fillings))
        trials = [(q, [next(drafts) for _ in q.added]) for q in proposals]
        now = self.worth
        values = self._values(trials)
        least = LEAST_GAIN * max(1.0, now)
        gaining = [(value - now, n) for n, value in enumerate(values.tolist()) if value - now > least]
        return self._apply([trials[n] for _, n in sorted(gaining, key=lambda g: (-g[0], g[1]))])

    def _values(self, trials: Sequence[tuple[Proposal, list[Draft | None]]]) -> Floats:
        """The objective after each of them alone; nothing for one with a lane that cannot be."""
        total = sum(d.rate for d in self.drafts)
        busy = sum(d.rate * d.slow for d in self.drafts)
        rates, sums = np.full(len(trials), total), np.full(len(trials), busy)
        for n, (proposal, found) in enumerate(trials):
            gone = [self.drafts[lane] for lane in proposal.removed]
            come = [d for d in found if d is not None]
            rates[n] += sum(d.rate for d in come) - sum(d.rate for d in gone)
            sums[n] += sum(d.rate * d.slow for d in come) - sum(d.rate * d.slow for d in gone)
            if len(come) < len(found):
                rates[n] = 0.0
        values = score_of(rates, sums / np.maximum(rates, 1e-12), self._p.wanted_per_s)
        return np.where(rates > 0.0, values, 0.0)

    def _apply(self, gaining: Sequence[tuple[Proposal, list[Draft | None]]]) -> bool:
        touched: set[int] = set()
        used: set[int] = set()
        added: list[Draft] = []
        for proposal, found in gaining:
            members = {i for d in found if d is not None for stage in d.sketch for i in stage}
            if touched & set(proposal.removed) or used & members:
                continue
            touched |= set(proposal.removed)
            used |= members
            added += [d for d in found if d is not None]
        self.drafts = [d for n, d in enumerate(self.drafts) if n not in touched] + added
        return bool(added) or bool(touched)

    # ------------------------------------------------------------ proposals

    def _draw(self, below: int) -> int:
        """A whole number from 0 to below - 1."""
        return int(next(self._draws, 0.5) * below)

    def _region(self, offer: int) -> int:
        return int(self._p.offers.regions[offer])

    def _any_lane(self) -> int | None:
        return self._draw(len(self.drafts)) if self.drafts else None

    def _near_lane(self, offer: int) -> int | None:
        """Mostly one that begins in the offer's region."""
        near = self._lanes_in.get(self._region(offer))
        return near[self._draw(len(near))] if near and self._draw(8) else self._any_lane()

    def _near_lanes(self, most: int) -> list[int]:
        """One to `most` lanes that begin in one region."""
        if not self.drafts:
            return []
        first = self._draw(len(self.drafts))
        near = self._lanes_in[self._region(self.drafts[first].sketch[0][0])]
        return sorted({first, *(near[self._draw(len(near))] for _ in range(self._draw(most)))})

    def _members(self, lanes: Sequence[int]) -> list[int]:
        """Their devices and some of the spares."""
        members = [i for lane in lanes for stage in self.drafts[lane].sketch for i in stage]
        return members + [s for s in self._spares[:MOST_SPARES] if self._draw(2)]

    def _any_offer(self) -> int:
        return int(self._usable[self._draw(len(self._usable))])

    def _swap(self) -> Proposal | None:
        """Two devices trade places: of two lanes, of one, or with a spare."""
        a, b = self._any_offer(), self._any_offer()
        lanes = {self._homes.get(a), self._homes.get(b)} - {None}
        if a == b or not lanes:
            return None
        trade = {a: b, b: a}
        changed = sorted(lane for lane in lanes if lane is not None)
        return Proposal(tuple(changed), tuple(_replaced(self.drafts[lane].sketch, trade) for lane in changed))

    def _relocate(self) -> Proposal | None:
        """A device goes to a place in some lane: as a stage of its own, or beside the holders of one."""
        device = self._any_offer()
        lane = self._near_lane(device)
        return None if lane is None else self._placed(device, lane)

    def _use_spare(self) -> Proposal | None:
        """A device that is in no lane is given a place, as `_relocate` does."""
        if not self._spares:
            return self._redeal()
        device = self._spares[self._draw(len(self._spares))]
        lane = self._near_lane(device)
        return None if lane is None else self._placed(device, lane)

    def _placed(self, device: int, lane: int) -> Proposal | None:
        home = self._homes.get(device)
        without = None if home is None else _without(self.drafts[home].sketch, device)
        target = self.drafts[lane].sketch if home != lane else without
        if not target:
            return None
        changed = self._with(target, device)
        if home is None or home == lane:
            return Proposal((lane,), (changed,))
        return Proposal((home, lane), (without, changed) if without else (changed,))

    def _with(self, sketch: Sketch, device: int) -> Sketch:
        """As a stage of its own somewhere, or beside the holders of one."""
        return placed(sketch, device, self._draw(num_places(sketch)))

    def _dissolve(self) -> Proposal | None:
        """A lane is taken apart; its devices go to other lanes, mostly of their regions."""
        lane = self._any_lane()
        if lane is None or len(self.drafts) < 2:
            return None
        changed: dict[int, Sketch] = {}
        for device in (i for stage in self.drafts[lane].sketch for i in stage):
            target = self._near_lane(device)
            if target is None or target == lane:
                target = self._any_lane()
            if target is None or target == lane:
                continue  # it becomes a spare
            changed[target] = self._with(changed.get(target, self.drafts[target].sketch), device)
        return Proposal((lane, *changed), tuple(changed.values()))

    def _reorder(self) -> Proposal | None:
        """Turn a run of stages round (2-opt on the ring)."""
        lane = self._any_lane()
        if lane is None or len(self.drafts[lane].sketch) < 2:
            return None
        sketch = self.drafts[lane].sketch
        i, j = sorted((self._draw(len(sketch) + 1), self._draw(len(sketch) + 1)))
        return None if j - i < 2 else Proposal((lane,), ((*sketch[:i], *sketch[i:j][::-1], *sketch[j:]),))

    def _regroup(self) -> Proposal | None:
        """Up to three lanes, and some spares, are built anew with another concurrency in mind."""
        lanes = self._near_lanes(3)
        members = self._members(lanes)
        kv = KV_STEPS[self._draw(len(KV_STEPS))] * self._p.problem.workload.num_reserved_tokens
        built, _ = self._grouper.lanes(members, kv)
        return Proposal(tuple(lanes), tuple(built)) if built else None

    def _redeal(self) -> Proposal | None:
        """Up to three lanes, and some spares, become one lane of some number of stages with about equal memory: more
        holders per stage instead of more lanes, or more stages."""
        lanes = self._near_lanes(3)
        members = self._members(lanes)
        if not members:
            return None
        stages: list[list[int]] = [[] for _ in range(1 + self._draw(min(len(members), MOST_STAGES)))]
        memory = self._p.offers.memory
        for device in sorted(members, key=lambda i: (-memory[i], i)):
            min(stages, key=lambda stage: sum(memory[i] for i in stage)).append(device)
        return Proposal(tuple(lanes), (tuple(tuple(stage) for stage in stages),))


def _replaced(sketch: Sketch, trade: dict[int, int]) -> Sketch:
    return tuple(tuple(trade.get(i, i) for i in stage) for stage in sketch)


def _without(sketch: Sketch, device: int) -> Sketch:
    stages = (tuple(i for i in stage if i != device) for stage in sketch)
    return tuple(stage for stage in stages if stage)
