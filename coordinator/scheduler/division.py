"""Which model each device works for, where there are several: floors first, then shares of what is wanted.

A device that holds layers of a model stays with it unless another's need is clearly greater: weights are many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.scheduler.state import DeviceKey

ROOM_FOR_ENDS = 1.15
"""Devices never fit layers exactly: so much memory is reckoned for one replica."""
CLEARLY = 0.25
"""Of all the power there is: a model that lacks more than this of its share may take from others."""
LEAST_SHARE = 0.05
"""Of a model that hardly anybody asks for: it is served nevertheless."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A model: bytes of one replica, the operator's floor, and the work per second that is wanted (None: unknown)."""

    manifest_hash: str
    replica_bytes: float
    num_replicas: int = 1
    demand: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A device: how quick it is with each model that it has measured, and which model it holds layers of."""

    key: DeviceKey
    memory_bytes: float
    speeds: Mapping[str, float]
    """Work per second."""
    holds: str | None = None


def divide(claims: Sequence[Claim], parts: Sequence[Part]) -> dict[DeviceKey, str]:
    """The model that each device is to work for. Devices that measured none of them are left out."""
    if len(claims) == 1:
        only = claims[0].manifest_hash
        return {part.key: only for part in parts if only in part.speeds}
    return _Division(claims, parts).run()


class _Division:
    def __init__(self, claims: Sequence[Claim], parts: Sequence[Part]) -> None:
        self._claims = {c.manifest_hash: c for c in sorted(claims, key=lambda c: c.manifest_hash)}
        self._parts = sorted(parts, key=lambda p: (-p.memory_bytes, p.key))
        self._shares = _shares(claims)
        self._memory = dict.fromkeys(self._claims, 0.0)
        self._power = dict.fromkeys(self._claims, 0.0)
        self._total = sum(max(p.speeds.values(), default=0.0) for p in parts) or 1.0
        self._chosen: dict[DeviceKey, str] = {}

    def run(self) -> dict[DeviceKey, str]:
        free: list[Part] = []
        for part in self._parts:
            if part.holds in self._claims and part.holds in part.speeds:
                self._give(part, part.holds)
            else:
                free.append(part)
        for part in free:
            if able := [m for m in self._claims if m in part.speeds]:
                self._give(part, max(able, key=self._need))
        self._take_from_others()
        return self._chosen

    def _need(self, model: str) -> tuple[bool, float]:
        """Floors come first, the one that lacks most of it before others; then who lacks most of its share."""
        lacking = self._lacking_floor(model)
        return (True, lacking) if lacking > 0.0 else (False, self._lacking_share(model))

    def _lacking_floor(self, model: str) -> float:
        claim = self._claims[model]
        wanted = claim.num_replicas * claim.replica_bytes * ROOM_FOR_ENDS
        return max(0.0, 1.0 - self._memory[model] / wanted) if wanted > 0.0 else 0.0

    def _lacking_share(self, model: str) -> float:
        return self._shares[model] - self._power[model] / self._total

    def _take_from_others(self) -> None:
        """While a model lacks its floor, or clearly much of its share, those that have more than theirs give."""
        for part in reversed(self._parts):
            giver = self._chosen.get(part.key)
            needy = max(self._claims, key=self._need)
            lacks_floor, lacking = self._need(needy)
            if not lacks_floor and lacking < CLEARLY:
                return
            if giver is not None and giver != needy and needy in part.speeds and self._can_give(giver, part):
                self._take(part, giver)
                self._give(part, needy)

    def _can_give(self, giver: str, part: Part) -> bool:
        """Above its floor and its share even without this device."""
        claim = self._claims[giver]
        keeps = self._memory[giver] - part.memory_bytes
        above_floor = keeps >= claim.num_replicas * claim.replica_bytes * ROOM_FOR_ENDS
        return above_floor and self._lacking_share(giver) + part.speeds[giver] / self._total <= 0.0

    def _give(self, part: Part, model: str) -> None:
        self._chosen[part.key] = model
        self._memory[model] += part.memory_bytes
        self._power[model] += part.speeds[model]

    def _take(self, part: Part, model: str) -> None:
        self._memory[model] -= part.memory_bytes
        self._power[model] -= part.speeds[model]


def _shares(claims: Sequence[Claim]) -> dict[str, float]:
    """Of all power, by demand. A model whose demand is not known yet counts like the mean of the others."""
    known = [c.demand for c in claims if c.demand is not None]
    usual = sum(known) / len(known) if known else 1.0
    wanted = {c.manifest_hash: usual if c.demand is None else c.demand for c in claims}
    total = sum(wanted.values()) or 1.0
    floored = {model: max(LEAST_SHARE, demand / total) for model, demand in wanted.items()}
    return {model: share / sum(floored.values()) for model, share in floored.items()}
