"""Closing a hole without enough free devices: its neighbours take some layers more, and hand others on to theirs."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.scheduler.filling_holes import HoleFiller
from coordinator.scheduler.pieces import Piece
from coordinator.scheduler.plan import Offer
from coordinator.scheduler.problems import Fit

Group = tuple[Piece, list[int]]
"""A piece and everybody who holds it: they change together, or chains would lose one of them."""
Push = tuple[int, dict[int, Piece]]
"""Layers to download, and who holds what then."""


def stretch(
    fit: Fit, filler: HoleFiller, groups: Sequence[Group], holes: Sequence[Piece], free: Sequence[int]
) -> dict[int, Piece] | None:
    """Close every hole of a lane whose pieces are `groups`, head first. Free devices take what they can; None if it
    cannot be done."""
    changes: dict[int, Piece] = {}
    left_free = filler.roomiest(free)
    current = list(groups)
    for hole in sorted(holes):
        closed = _close(fit, filler, current, hole, left_free)
        if closed is None:
            return None
        changes |= closed
        left_free = [i for i in left_free if i not in closed]
        added = [(piece, [i]) for i, piece in closed.items() if all(i not in holders for _, holders in current)]
        moved = [(closed.get(holders[0], piece), holders) for piece, holders in current]
        current = sorted([*moved, *added])
    return changes


class _Pushes:
    """What the groups on both sides of one hole could take."""

    def __init__(self, fit: Fit, offers: Sequence[Offer], groups: Sequence[Group], hole: Piece) -> None:
        self._fit, self._offers = fit, offers
        self._before = [g for g in reversed(groups) if g[0][1] <= hole[0]]
        self._behind = [g for g in groups if g[0][0] >= hole[1]]
        self._hole = hole

    def left(self, stop: int) -> Push | None:
        """Those before the hole hold everything up to `stop`."""
        need, changes, num_layers = stop, dict[int, Piece](), 0
        if stop == self._hole[0]:
            return 0, {}
        for (start, end), holders in self._before:
            first = max(start, *(self._fit.reach_back(self._offers[i], need) for i in holders))
            if first >= need:
                return None
            changes |= dict.fromkeys(holders, (first, need))
            num_layers += len(holders) * (need - max(end, first))
            if first == start:
                return num_layers, changes
            need = first
        return None

    def right(self, start: int) -> Push | None:
        """Those behind the hole hold everything from `start`."""
        need, changes, num_layers = start, dict[int, Piece](), 0
        if start == self._hole[1]:
            return 0, {}
        for (begin, stop), holders in self._behind:
            last = min(stop, *(self._fit.reach(self._offers[i], need) for i in holders))
            if last <= need:
                return None
            changes |= dict.fromkeys(holders, (need, last))
            num_layers += len(holders) * (min(begin, last) - need)
            if last == stop:
                return num_layers, changes
            need = last
        return None


def _close(
    fit: Fit, filler: HoleFiller, groups: Sequence[Group], hole: Piece, free: Sequence[int]
) -> dict[int, Piece] | None:
    """The way with the fewest layers to download: neighbours up to `a` and from `b` on, free devices between."""
    pushes = _Pushes(fit, filler.offers, _contiguous(groups, hole), hole)
    rights = {b: push for b in range(hole[0], hole[1] + 1) if (push := pushes.right(b)) is not None}
    best: Push | None = None
    for a in range(hole[0], hole[1] + 1):
        left = pushes.left(a)
        if left is None:
            continue
        for b in [b for b in rights if b >= a]:
            middle = {} if a == b else filler.pack(free, (a, b), float("inf"))
            if middle is None:
                continue
            num_layers = left[0] + rights[b][0] + b - a
            if best is None or num_layers < best[0]:
                best = num_layers, {**left[1], **middle, **rights[b][1]}
    return best[1] if best else None


def _contiguous(groups: Sequence[Group], hole: Piece) -> list[Group]:
    """The groups that adjoin the hole without another hole between."""
    before: list[Group] = []
    edge = hole[0]
    for group in sorted((g for g in groups if g[0][1] <= hole[0]), reverse=True, key=lambda g: g[0]):
        if group[0][1] != edge:
            break
        before.append(group)
        edge = group[0][0]
    behind: list[Group] = []
    edge = hole[1]
    for group in sorted((g for g in groups if g[0][0] >= hole[1]), key=lambda g: g[0]):
        if group[0][0] != edge:
            break
        behind.append(group)
        edge = group[0][1]
    return [*reversed(before), *behind]
