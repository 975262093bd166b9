"""Phase 1 after a change: mend what broke with the fewest bytes, then give every device that is left something to do.

1. What was whole and is broken comes first: a device that has the missing layers on its disk, else the fewest free
   devices that suffice, else neighbours that take some layers more, else all that is left is cut anew.
2. Devices that are left strengthen what serves (spares.py), or make a lane of their own.
3. What works is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from coordinator.scheduler.departed import FLAPPING_PER_S
from coordinator.scheduler.filling_holes import HoleFiller
from coordinator.scheduler.forecast import lanes_of, score
from coordinator.scheduler.pieces import Piece, cheapest_path, holes_of, least_wait, on_paths
from coordinator.scheduler.plan import Lane, Placement, Problem, Stage
from coordinator.scheduler.problems import Fit, fit_of
from coordinator.scheduler.quickest import Quickest
from coordinator.scheduler.spares import Spares
from coordinator.scheduler.stretching import Group, stretch
from protocol.values import LayerRange

REBUILD_BUDGET = 200
"""Plans that are tried when fragments or spares are cut anew: a repair must be quick. A plan from scratch follows
when things are quiet, if it gains enough."""
LASTS_S = 300.0
"""While nothing serves, a chain that is ready so much later must be worth twice as much: it will not serve for long
before another layout may follow (migrations.py)."""
SPLIT_SHARE = 0.85
SPLIT_PATIENCE = 1.5
"""A slice is split where neither half takes longer than this part of the whole's time, and both together with their hop
not longer than so many times."""
HURRY_PATIENCE = 1.3
HURRY_SLACK_S = 5.0
LEAST_HASTE = 0.4
"""A chain that is being loaded is given up for one that is ready in this part of the time that is left, and some
seconds less: what is known of lines and disks is not exact, and each change leaves something downloaded in vain."""
LEAST_HURRY = 0.97
HURRY_SESSIONS = (1, 4, 16)
LARGE_POOL = 64
MOST_MENDS = 64
"""Broken lanes mended at once; the rest with the next change, or by a plan from scratch."""


class LaneBuilder(Protocol):
    """Makes lanes of some of a problem's offers."""

    def lanes_from(self, problem: Problem, indices: Sequence[int]) -> tuple[Lane, ...]: ...


def repair(problem: Problem, builder: LaneBuilder | None = None) -> list[Placement]:
    """What to change now: for free devices, and for holders whose slice is of no use as it is. Same problem, same
    answer. Without a `builder` whole lanes are filled simply: the fewest devices, levelled by speed."""
    return _Repair(problem, builder).run()


class _Repair:
    """`held` is the plan so far: what each offer holds, or will."""

    def __init__(self, problem: Problem, builder: LaneBuilder | None) -> None:
        self._problem = problem
        self._builder = builder
        self._fit = fit_of(problem)
        self._filler = HoleFiller(problem, self._fit)
        self._quickest = Quickest(problem, self._fit)
        self._num_layers = problem.model.num_layers
        self._held: dict[int, Piece] = {
            i: (o.held.start, o.held.stop) for i, o in enumerate(problem.offers) if o.held is not None
        }
        self._holders: dict[Piece, list[int]] = {}
        for i, piece in self._held.items():
            self._holders.setdefault(piece, []).append(i)
        self._free = {i: None for i, o in enumerate(problem.offers) if o.held is None}
        self._reasons: dict[int, str] = {}
        self._whole: set[Piece] | None = None

    def run(self) -> list[Placement]:
        self._resume()
        self._hurry()
        self._mend_all()
        if self._is_served():
            self._trim_for_splits()
            self._use_spares()
        offers = self._problem.offers
        return [Placement(offers[i].key, LayerRange(*self._held[i]), reason) for i, reason in self._reasons.items()]

    # ------------------------------------------------------------ 1: what a device has on disk

    def _resume(self) -> None:
        """While nothing that is ready serves, devices take back what makes a path whole: it is on their disks. They
        do so even where others load the same layers, as that may take many minutes."""
        offers = self._problem.offers
        loading = {piece for piece, holders in self._holders.items() if all(offers[i].is_loading for i in holders)}
        if self._serving() if not loading else on_paths(self._holders.keys() - loading, self._num_layers):
            return
        stored = self._stored()
        whole = on_paths({*self._holders, *stored}, self._num_layers)
        for piece in sorted(whole & stored.keys()):
            for i in stored[piece]:
                if i not in self._held:
                    self._place(i, piece, f"{piece[1] - piece[0]} layers, which it held before")

    def _stored(self) -> dict[Piece, list[int]]:
        """What free devices had last, and can hold."""
        found: dict[Piece, list[int]] = {}
        for i in self._free:
            offer = self._problem.offers[i]
            for layers in offer.stored[:1]:
                if layers.stop <= self._num_layers and self._fit.fits(offer, layers.start, layers.stop):
                    found.setdefault((layers.start, layers.stop), []).append(i)
        return found

    # ------------------------------------------------------------ 2: nothing serves

    def _hurry(self) -> None:
        """Nothing serves: those that are left make the chain that is ready first, whatever they hold now, unless the
        usual way is as good, or what is being loaded is ready nearly as soon. Who builds the first chain of a pool is
        left to it."""
        ready = self._ready()
        if not self._held or on_paths(ready, self._num_layers) or (self._serving() and not self._problem.has_served):
            return
        within_s = LEAST_HASTE * self._soonest_s({}) - HURRY_SLACK_S
        if within_s <= 0.0:
            return
        everybody = sorted([*self._held, *self._free])
        usual = None if self._serving() else self._closing(self._fragments())
        chains = [chain for fit in self._fits() for chain in Quickest(self._problem, fit).chains(everybody)]
        best = self._best_soon([usual, *chains] if usual else chains)
        if best is None or best is usual or self._soonest_s(best) > within_s:
            return  # _mend_all will do the usual
        if self._serving() and self._lacking(self._held | best) > self._lacking(self._held):
            return  # all share a mirror: more bytes may take longer, however quick the lines are
        for i, piece in best.items():
            if self._held.get(i) != piece:
                num_layers = piece[1] - piece[0]
                self._place(i, piece, f"{num_layers} layers of the chain of {len(best)} stages that is ready first")

    def _best_soon(self, options: Sequence[dict[int, Piece]]) -> dict[int, Piece] | None:
        """Of those that are ready not much later than the first, the one that is worth most; the first of equals."""
        waits_s = [self._soonest_s(changes) for changes in options]
        limit_s = HURRY_PATIENCE * min(waits_s, default=0.0) + HURRY_SLACK_S
        soon = [
            (self._worth_with(changes) / (1.0 + wait_s / LASTS_S), changes)
            for wait_s, changes in zip(waits_s, options, strict=True)
            if wait_s <= limit_s
        ]
        most = max((worth for worth, _ in soon), default=0.0)
        return next((changes for worth, changes in soon if worth >= LEAST_HURRY * most), None)

    def _worth_with(self, changes: Mapping[int, Piece]) -> float:
        plan = {i: LayerRange(*piece) for i, piece in (self._held | dict(changes)).items()}
        return score(self._problem, lanes_of(self._problem, plan))

    def _fits(self) -> Iterable[Fit]:
        """With little KV room a chain needs the fewest downloads; with more it serves more at once."""
        for num_sessions in HURRY_SESSIONS:
            num_tokens = num_sessions * int(self._problem.workload.num_reserved_tokens)
            yield fit_of(replace(self._problem, min_kv_tokens=max(self._problem.min_kv_tokens, num_tokens)))

    def _soonest_s(self, changes: Mapping[int, Piece]) -> float:
        """Until a whole chain is downloaded if these changes are made to what is planned so far. All load from one
        mirror, whose rate nobody knows."""
        plan = self._held | dict(changes)
        whole = on_paths({*plan.values()}, self._num_layers)
        waits: dict[Piece, float] = {}
        loading: dict[int, Piece] = {}
        for i, piece in plan.items():
            if i in changes or self._is_new(i):
                loading |= {i: piece} if piece in whole else {}
                wait_s = self._quickest.wait_s({i: piece})
            else:
                wait_s = 0.0
            waits[piece] = min(wait_s, waits.get(piece, wait_s))
        return max(least_wait(waits, self._num_layers), self._quickest.shared_s(loading))

    def _lacking(self, plan: Mapping[int, Piece]) -> float:
        """Bytes that are still to be downloaded before each slice of this plan's whole chains has a holder."""
        least: dict[Piece, float] = {}
        for i, piece in plan.items():
            missing = self._quickest.missing_bytes(i, piece)
            least[piece] = min(missing, least.get(piece, missing))
        return sum(least[piece] for piece in on_paths(least, self._num_layers))

    def _is_served(self) -> bool:
        """Whether slices that are ready make a whole chain, or none is ready yet. Until then whatever else is
        downloaded makes those wait longer who load what is missing: they share a mirror, often a line."""
        ready = self._ready()
        return not ready or bool(on_paths(ready, self._num_layers))

    def _ready(self) -> set[Piece]:
        """Pieces that somebody has loaded."""
        return {piece for piece, held in self._holders.items() if not all(map(self._is_new, held))}

    def _is_new(self, i: int) -> bool:
        """It has yet to load what it is to hold."""
        return self._problem.offers[i].is_loading or i in self._reasons

    # ------------------------------------------------------------ 3: broken lanes

    def _fragments(self) -> dict[Piece, list[int]]:
        """Pieces on no whole path."""
        whole = self._serving()
        if len(whole) == len(self._holders):
            return {}
        return {piece: holders for piece, holders in self._holders.items() if piece not in whole}

    def _mend_all(self) -> None:
        serves = bool(self._serving())
        for _ in range(MOST_MENDS):
            fragments = self._fragments()
            if not fragments or not self._mend(fragments):
                break
            serves = True
        if not serves:
            why = "cut anew from what is left" if self._held else "the first that is held"
            self._rebuild([*self._held, *self._free], why)

    def _mend(self, fragments: dict[Piece, list[int]]) -> bool:
        """Make one broken lane whole, with free devices or with those whose fragments it does not need."""
        changes = self._closing(fragments)
        if changes is None:
            return False
        for i, piece in changes.items():
            was_here = i in self._free and LayerRange(*piece) in self._problem.offers[i].stored
            before = f"{piece[1] - piece[0]} layers, which it held before"
            self._place(i, piece, before if was_here else self._mending_reason(i, piece))
        return True

    def _closing(self, fragments: dict[Piece, list[int]]) -> dict[int, Piece] | None:
        """The changes that make one broken lane whole; None if that cannot be done."""
        stored = self._stored()
        path = self._broken_lane(fragments, stored)
        if path is None:
            return None
        back = {piece: self._steadiest(stored[piece]) for piece in path if piece not in fragments}
        free = [i for i in self._free if i not in back.values()]
        unneeded = [i for piece, held in fragments.items() for i in (held[1:] if piece in path else held)]
        groups = [(piece, (fragments.get(piece) or [back[piece]])) for piece in path]
        alone = [(piece, held[:1]) for piece, held in groups]
        filled = self._closed(groups, free) or (self._closed(alone, [*free, *unneeded]) if unneeded else None)
        return None if filled is None else {i: piece for piece, i in back.items()} | filled

    def _closed(self, groups: Sequence[Group], usable: Sequence[int]) -> dict[int, Piece] | None:
        """Who takes what, so that nothing is missing between these pieces."""
        holes = sorted(holes_of([piece for piece, _ in groups], self._num_layers), key=lambda hole: hole[0] - hole[1])
        filled = self._filler.fill_all(holes, usable)
        return stretch(self._fit, self._filler, groups, holes, usable) if filled is None else filled

    def _broken_lane(self, fragments: dict[Piece, list[int]], stored: dict[Piece, list[int]]) -> list[Piece] | None:
        """Fragments, and what is on free devices' disks, that leave the least to download."""
        weights = self._problem.model.weights
        layer_prices = [b - a for a, b in pairwise(weights)]
        prices = {piece: 0.01 * (weights[piece[1]] - weights[piece[0]]) for piece in stored}
        prices |= dict.fromkeys(fragments, 0.0)
        path = cheapest_path(prices, layer_prices, opening=0.5 * layer_prices[0])
        return path if path and any(piece in fragments for piece in path) else None

    def _mending_reason(self, i: int, piece: Piece) -> str:
        before = self._held.get(i)
        num_layers = piece[1] - piece[0]
        if before is None:
            return f"{num_layers} layers that nobody held: layers {piece[0]}-{piece[1] - 1} were missing in a lane"
        if before[0] < piece[1] and piece[0] < before[1]:
            return f"{num_layers} layers instead of {before[1] - before[0]}, to close the gap beside it"
        return f"{num_layers} layers that nobody held, instead of {before[1] - before[0]} that could be spared"

    def _rebuild(self, indices: Iterable[int], why: str) -> bool:
        """Lanes from these devices, whatever they hold now."""
        lanes = self._lanes(sorted(indices))
        for lane in lanes:
            for stage in lane.stages:
                for i in stage.holders:
                    piece = (stage.layers.start, stage.layers.stop)
                    if self._held.get(i) != piece:
                        self._place(i, piece, f"{len(stage.layers)} layers, {why}: a lane of {len(lane.stages)} stages")
        return bool(lanes)

    def _lanes(self, indices: Sequence[int]) -> tuple[Lane, ...]:
        offers = self._problem.offers
        steady = [i for i in indices if offers[i].leaves_per_s < FLAPPING_PER_S]
        for some in (steady, indices) if len(steady) < len(indices) else (indices,):
            if sum(self._fit.most_layers(offers[i]) for i in some) < self._num_layers:
                continue
            if lanes := self._built(some):
                return lanes
        return ()

    def _built(self, indices: Sequence[int]) -> tuple[Lane, ...]:
        if self._builder is None:
            return self._filler.simple_lane(indices)
        offers = tuple(self._problem.offers[i] for i in indices)
        problem = replace(self._problem, offers=offers, budget=0 if self._is_large else self._budget)
        lanes = self._builder.lanes_from(problem, range(len(offers)))
        return tuple(_named(lane, indices) for lane in lanes) or self._filler.simple_lane(indices)

    @property
    def _is_large(self) -> bool:
        """Too large a pool to weigh everything at each change; a look at the whole follows when things are quiet."""
        return len(self._problem.offers) > LARGE_POOL

    @property
    def _budget(self) -> int:
        return min(REBUILD_BUDGET, self._problem.budget)

    # ------------------------------------------------------------ 3: trims for splits

    def _trim_for_splits(self) -> None:
        """A fragment that is the head or tail of a slice that serves may make it quicker: who holds the slice keeps the
        rest, which downloads nothing. Not while requests run there."""
        offers = self._problem.offers
        for piece, holders in sorted(self._fragments().items()):
            if all(offers[i].is_loading for i in holders) or any(i in self._reasons for i in holders):
                continue
            for whole in self._around(piece):
                idle = [i for i in self._holders[whole] if not offers[i].is_busy and i not in self._reasons]
                rest = (whole[0], piece[0]) if piece[1] == whole[1] else (piece[1], whole[1])
                slowest = min(idle, key=lambda i: -offers[i].speed.step_s, default=None)
                if slowest is not None and any(self._is_quicker(slowest, rest, i, piece) for i in holders):
                    reason = f"{rest[1] - rest[0]} layers, the rest now beside it: a shorter stage is quicker"
                    self._place(slowest, rest, reason)
                    break

    def _is_quicker(self, i: int, rest: Piece, other: int, piece: Piece) -> bool:
        """Whether two stages in place of one carry more, and do not take much longer: a fast device alone does better
        than with a slow one, or a far one, beside it."""
        whole = (min(rest[0], piece[0]), max(rest[1], piece[1]))
        alone_s, rest_s, piece_s = self._step_s(i, whole), self._step_s(i, rest), self._step_s(other, piece)
        nodes = [self._problem.offers[n].key.node_id for n in (i, other)]
        longer_s = rest_s + piece_s + self._problem.links.delay_s(*nodes)
        return max(rest_s, piece_s) <= SPLIT_SHARE * alone_s and longer_s <= SPLIT_PATIENCE * alone_s

    def _step_s(self, i: int, piece: Piece) -> float:
        work = self._problem.model.work_of(LayerRange(*piece))
        return self._problem.offers[i].speed.step_time_s(work, 1, last=piece[1] == self._num_layers)

    def _around(self, piece: Piece) -> list[Piece]:
        """Slices that serve, of which this one is the head or the tail."""
        return sorted(w for w in self._serving() if _is_end(piece, w))

    # ------------------------------------------------------------ 4: spares

    def _use_spares(self) -> None:
        fragments = self._fragments()
        if len(fragments) == len(self._holders):
            return  # nothing serves that could be strengthened: they wait for more
        waiting = {i for piece, holders in fragments.items() if self._around(piece) for i in holders}
        idle = [i for holders in fragments.values() for i in holders if i not in waiting and i not in self._reasons]
        spares = sorted([*self._free, *idle])
        if not spares:
            return
        for i in idle:
            self._leave(i)
        chosen = self._best_use(spares)
        for i, (piece, reason) in chosen.items():
            if self._problem.offers[i].held != LayerRange(*piece):
                self._place(i, piece, reason)
        for i in idle:
            if i not in self._held:
                self._hold(i, self._held_before(i))

    def _best_use(self, spares: Sequence[int]) -> dict[int, tuple[Piece, str]]:
        """Each strengthens what serves; or together they make lanes, when that is better."""
        beside = Spares(self._problem, self._fit, self._serving_holders()).choose(spares)
        if len(spares) < 2 or not (lanes := self._lanes(spares)):
            return beside
        together: dict[int, tuple[Piece, str]] = {}
        for lane in lanes:
            why = f"a new lane of {len(lane.stages)} stages"
            for stage in lane.stages:
                piece = (stage.layers.start, stage.layers.stop)
                together |= dict.fromkeys(stage.holders, (piece, f"{len(stage.layers)} layers, {why}"))
        if self._is_large:
            return beside | together
        return together if self._score_with(together) >= self._score_with(beside) else beside

    def _score_with(self, chosen: dict[int, tuple[Piece, str]]) -> float:
        held = self._held | {i: piece for i, (piece, _) in chosen.items()}
        return score(self._problem, lanes_of(self._problem, {i: LayerRange(*piece) for i, piece in held.items()}))

    # ------------------------------------------------------------ the plan so far

    def _steadiest(self, indices: Sequence[int]) -> int:
        return min(indices, key=lambda i: (self._problem.offers[i].leaves_per_s, i))

    def _held_before(self, i: int) -> Piece:
        held = self._problem.offers[i].held
        assert held is not None, "only holders are put back"
        return held.start, held.stop

    def _place(self, i: int, piece: Piece, reason: str) -> None:
        if i in self._held:
            self._leave(i)
        self._free.pop(i, None)
        self._hold(i, piece)
        self._reasons[i] = reason

    def _serving(self) -> set[Piece]:
        """Pieces on whole paths, as planned so far."""
        if self._whole is None:
            self._whole = on_paths(self._holders, self._num_layers)
        return self._whole

    def _serving_holders(self) -> dict[Piece, list[int]]:
        return {piece: self._holders[piece] for piece in sorted(self._serving())}

    def _hold(self, i: int, piece: Piece) -> None:
        if piece not in self._holders:
            self._whole = None
        self._held[i] = piece
        self._holders.setdefault(piece, []).append(i)

    def _leave(self, i: int) -> None:
        piece = self._held.pop(i)
        self._holders[piece].remove(i)
        if not self._holders[piece]:
            del self._holders[piece]
            self._whole = None


def _is_end(piece: Piece, whole: Piece) -> bool:
    """Whether it is the head or the tail of a longer one."""
    inside = whole[0] <= piece[0] and piece[1] <= whole[1]
    return inside and piece != whole and (piece[0] == whole[0] or piece[1] == whole[1])


def _named(lane: Lane, indices: Sequence[int]) -> Lane:
    """The lane with the problem's numbers in place of a part's."""
    return Lane(tuple(Stage(stage.layers, tuple(indices[h] for h in stage.holders)) for stage in lane.stages))
