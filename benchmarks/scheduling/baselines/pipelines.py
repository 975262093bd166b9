"""A pipeline cut to size: layers in proportion to speed, bounded by memory (water-filling), integers by remainder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.scheduling.baselines.capacity import Capacity, Span, spans_from

BISECTIONS = 60


def water_fill(num_layers: int, capacities: Sequence[int], rates: Sequence[float]) -> list[int] | None:
    """Whole layers per stage: min(capacity, level x rate), the level such that all are placed (Parallax, arXiv
    2509.26182, section 3, water-filling), made whole by the largest remainder (Hamilton's method). Every stage gets
    one at least; None when the capacities do not suffice, or there are more stages than layers."""
    if sum(capacities) < num_layers or len(capacities) > num_layers or min(capacities, default=0) < 1:
        return None
    low, high = 0.0, num_layers / min(rates)
    for _ in range(BISECTIONS):
        level = (low + high) / 2
        placed = sum(min(c, level * rate) for c, rate in zip(capacities, rates, strict=True))
        low, high = (low, level) if placed >= num_layers else (level, high)
    shares = [min(float(c), high * rate) for c, rate in zip(capacities, rates, strict=True)]
    return _whole(num_layers, shares, capacities)


def _whole(num_layers: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    counts = [max(1, int(share + 1e-9)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    while sum(counts) < num_layers:
        for i in by_remainder:
            if sum(counts) < num_layers and counts[i] < capacities[i]:
                counts[i] += 1
    while sum(counts) > num_layers:
        i = max((i for i, count in enumerate(counts) if count > 1), key=lambda i: counts[i] - shares[i])
        counts[i] -= 1
    return counts


def cut(capacity: Capacity, members: Sequence[int], rates: Sequence[float]) -> dict[int, Span] | None:
    """Spans of a whole pipeline over these offers, in this order if the ends (embedding and head) fit so, else with
    the roomiest two at the ends; `rates` are by offer index. None when they are too small."""
    roomiest = sorted(members, key=lambda i: (-capacity.count(i), i))
    inner = [i for i in members if i not in roomiest[:2]]
    for order in (list(members), [*roomiest[:1], *inner, *roomiest[1:2]], [*roomiest[1:2], *inner, *roomiest[:1]]):
        final = len(order) - 1
        counts = water_fill(
            capacity.num_layers,
            [capacity.count(i, first=at == 0, last=at == final) for at, i in enumerate(order)],
            [rates[i] for i in order],
        )
        if counts is not None:
            return dict(zip(order, spans_from(counts), strict=True))
    return None


def cut_smallest(capacity: Capacity, candidates: Iterable[int], rates: Sequence[float]) -> dict[int, Span] | None:
    """A pipeline over as many of the candidates, in their order, as it takes."""
    members: list[int] = []
    num_fitting = 0
    for i in candidates:
        members.append(i)
        num_fitting += capacity.count(i)
        if num_fitting >= capacity.num_layers and (spans := cut(capacity, members, rates)):
            return spans
        if len(members) == capacity.num_layers:
            break
    return None
