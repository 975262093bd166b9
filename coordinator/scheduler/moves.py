"""From the layout that is held to the one that is wanted, without ever ceasing to serve. Pure: a state machine.

Free devices load first. Then lane by lane: devices that are to change get nothing new, finish what runs on them, and
load; the next lane begins when this one is ready. Nobody is touched while that would leave no whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.plan import Forecast, Placement
from coordinator.scheduler.state import DeviceKey

PATIENCE_S = 30.0
"""So long requests may finish on a device that is to change; then they are replayed elsewhere."""
MOST_S = 1800.0
"""A migration that takes longer is given up: what it was planned for is history."""
HORIZON_S = 3600.0
"""What a new layout gains counts for so long."""
LEAST_GAIN = 1.10
"""A new layout must score this much better, or layouts would follow every measurement."""
LATENCY_WORTH = 0.5
"""Answers that come a tenth sooner are worth a twentieth more tokens."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a device holds now: None is nothing."""

    piece: Piece | None
    is_ready: bool = False
    num_requests: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now. `retiring`: devices that are to get nothing new; `is_over`: done, or given up."""

    changes: tuple[Placement, ...] = ()
    retiring: frozenset[DeviceKey] = frozenset()
    is_over: bool = False


@dataclass(slots=True)
class Migration:
    """`lanes` are the wanted ones; `may_stop` says that serving may be interrupted where nothing else is possible."""

    num_layers: int
    lanes: tuple[tuple[Placement, ...], ...]
    since_s: float
    may_stop: bool = False
    _retiring: dict[DeviceKey, float] = field(default_factory=dict)

    def step(self, held: Mapping[DeviceKey, Holding], now_s: float) -> Step:
        """Given what every device of this model and variant, or free one, holds now."""
        placements = {p.key: p for lane in self.lanes for p in lane}
        if now_s > self.since_s + MOST_S or not placements.keys() <= held.keys():
            return Step(is_over=True)
        if not self.may_stop and not _serves(held, (), self.num_layers):
            return Step(is_over=True)
        open_keys = [key for key, p in placements.items() if held[key].piece != _piece(p)]
        self._retiring = {key: since for key, since in self._retiring.items() if key in open_keys}
        changes = [placements[key] for key in open_keys if held[key].piece is None]
        may_go_on = not changes and not self._retiring and _all_ready(placements, held, open_keys)
        if may_go_on and not self._retire_lane(held, set(open_keys), now_s):
            return Step(is_over=True)
        changes += [placements[key] for key in self._due(held, now_s)]
        return Step(tuple(changes), frozenset(self._retiring) - {p.key for p in changes})

    def _retire_lane(self, held: Mapping[DeviceKey, Holding], open_keys: Collection[DeviceKey], now_s: float) -> bool:
        """Choose the wanted lane that needs the fewest changes, as far as the rest still serves; False if none can."""
        wanted = [[p.key for p in lane if p.key in open_keys] for lane in self.lanes]
        for keys in sorted((keys for keys in wanted if keys), key=len):
            if chosen := self._without_stopping(held, keys):
                self._retiring = dict.fromkeys(chosen, now_s)
                return True
        if self.may_stop and open_keys:
            self._retiring = dict.fromkeys(open_keys, now_s)
        return bool(self._retiring)

    def _without_stopping(self, held: Mapping[DeviceKey, Holding], keys: Iterable[DeviceKey]) -> list[DeviceKey]:
        chosen: list[DeviceKey] = []
        for key in keys:
            if _serves(held, {*chosen, key}, self.num_layers):
                chosen.append(key)
        return chosen

    def _due(self, held: Mapping[DeviceKey, Holding], now_s: float) -> list[DeviceKey]:
        """Retiring devices on which nothing runs any more, or has for long enough."""
        return [
            key for key, since in self._retiring.items() if not held[key].num_requests or now_s >= since + PATIENCE_S
        ]


def _piece(placement: Placement) -> Piece:
    return placement.layers.start, placement.layers.stop


def _all_ready(
    placements: Iterable[DeviceKey], held: Mapping[DeviceKey, Holding], open_keys: Collection[DeviceKey]
) -> bool:
    return all(held[key].is_ready for key in placements if key not in open_keys)


def _serves(held: Mapping[DeviceKey, Holding], without: Collection[DeviceKey], num_layers: int) -> bool:
    """Whether ready devices other than these have a whole chain."""
    pieces = {h.piece for key, h in held.items() if h.piece is not None and h.is_ready and key not in without}
    return bool(on_paths(pieces, num_layers))


# ---------------------------------------------------------------- whether it pays


@dataclass(frozen=True, slots=True)
class LaneChange:
    """A lane of now that a migration interrupts: what it does, and how long its devices take to load."""

    tokens_per_s: float
    load_s: float


def gain_tokens(before: Forecast, after: Forecast, demand: float | None, leaves_per_s: Sequence[float]) -> float:
    """What the new layout gains in the next hour, in tokens, of what is wanted.

    `leaves_per_s` are the changed devices' churn: a device that leaves takes its part of the gain with it."""
    limit = math.inf if demand is None else demand
    served_before, served_after = min(before.tokens_per_s, limit), min(after.tokens_per_s, limit)
    sooner = 1.0 - after.tpot_s / before.tpot_s if 0.0 < before.tpot_s < math.inf else 0.0
    gained = served_after - served_before + LATENCY_WORTH * sooner * served_before
    return gained * HORIZON_S * _mean_stay(leaves_per_s)


def cost_tokens(before: Forecast, lanes: Iterable[LaneChange], demand: float | None) -> float:
    """Tokens that are not served while these lanes of now are changed."""
    limit = math.inf if demand is None else demand
    used = min(1.0, limit / before.tokens_per_s) if before.tokens_per_s > 0.0 else 0.0
    return sum(lane.tokens_per_s * lane.load_s for lane in lanes) * used


def _mean_stay(leaves_per_s: Sequence[float]) -> float:
    """The part of the horizon for which a device is still here, on average (exponential lifetimes)."""
    stays = [(1.0 - math.exp(-rate * HORIZON_S)) / (rate * HORIZON_S) if rate > 0.0 else 1.0 for rate in leaves_per_s]
    return sum(stays) / len(stays) if stays else 1.0
