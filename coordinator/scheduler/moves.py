"""From the layout that is held to the one that is wanted, without ever ceasing to serve. Pure: a state machine.

Free devices load first. Then lane by lane: devices that are to change get nothing new, finish what runs on them, and
load; the next lane begins when this one is ready. Nobody is touched while that would leave no whole chain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.scheduler.flow import Outlook
from coordinator.scheduler.pieces import Piece, on_paths
from coordinator.scheduler.plan import Placement
from coordinator.scheduler.state import DeviceKey

PATIENCE_S = 30.0
"""So long requests may finish on a device that is to change; then they are replayed elsewhere."""
MOST_S = 1800.0
"""A migration that takes longer is given up: what it was planned for is history."""
HORIZON_S = 3600.0
"""What a new layout gains counts for so long."""
LEAST_GAIN = 0.10
"""Of what is served: a new layout must gain this much, or layouts would follow every measurement."""
LATENCY_WORTH = 0.5
"""Answers that come a tenth sooner are worth a twentieth more tokens."""
LEAST_SOONER = 0.2
"""Answers that come sooner by less than this are none the better for it: people notice a difference of durations from
about a fifth on (Seow 2008, "Designing and Engineering Time", the 20 % rule)."""
HEADROOM = 1.25
"""Times the demand, which is a remembered peak (workload.py): more capacity is no gain. Where more than four fifths of
the capacity are used, requests begin to wait for each other."""
BYTES_WORTH = 0.5
"""To load all that is held once more costs as much as half of what it serves in an hour, or a part of it the same part
of that. In bytes of the layout itself, because what a byte brings is very different from model to model. A volunteer
stays for some hours and loads a slice once for them; a layout that is moved every hour makes everybody load as often,
and must be worth clearly more than a few per cent."""


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
class Interruption:
    """A step of a migration: what the pool can do less while it lasts, and how long its devices take to load."""

    tokens_per_s: float
    load_s: float


def pays(before: Outlook, after: Outlook, gained: float, cost: float, wanted_per_s: float) -> bool:
    """Whether to move: clearly more is gained than it costs, and there will not be less room for requests."""
    least = LEAST_GAIN * _served(before, wanted_per_s) * HORIZON_S
    return after.tokens_per_s >= before.tokens_per_s and gained >= least and gained > cost


def gain_tokens(before: Outlook, after: Outlook, wanted_per_s: float, leaves_per_s: Sequence[float]) -> float:
    """What the new layout gains in the next hour, in tokens, of what is wanted.

    `leaves_per_s` are the changed devices' churn: a device that leaves takes its part of the gain with it."""
    more = _served(after, HEADROOM * wanted_per_s) - _served(before, HEADROOM * wanted_per_s)
    gained = more + LATENCY_WORTH * _sooner(before, after) * _served(before, wanted_per_s)
    return gained * HORIZON_S * _mean_stay(leaves_per_s)


def cost_tokens(before: Outlook, steps: Iterable[Interruption], bytes_part: float, wanted_per_s: float) -> float:
    """What moving costs, in tokens: those that are not served meanwhile, and the download.

    `bytes_part`: what must be downloaded, relative to what all that is held takes."""
    served = _served(before, wanted_per_s)
    used = served / before.tokens_per_s if before.tokens_per_s > 0.0 else 0.0
    lost = sum(step.tokens_per_s * step.load_s for step in steps) * used
    return lost + BYTES_WORTH * bytes_part * served * HORIZON_S


def _served(seen: Outlook, wanted_per_s: float) -> float:
    return min(seen.tokens_per_s, wanted_per_s)


def _sooner(before: Outlook, after: Outlook) -> float:
    """By which part answers come sooner, as far as people notice; negative where they come later."""
    sooner = 1.0 - after.answer_s / before.answer_s if 0.0 < before.answer_s < math.inf else 0.0
    return sooner if sooner < 0.0 or sooner >= LEAST_SOONER else 0.0


def _mean_stay(leaves_per_s: Sequence[float]) -> float:
    """The part of the horizon for which a device is still here, on average (exponential lifetimes)."""
    stays = [(1.0 - math.exp(-rate * HORIZON_S)) / (rate * HORIZON_S) if rate > 0.0 else 1.0 for rate in leaves_per_s]
    return sum(stays) / len(stays) if stays else 1.0
