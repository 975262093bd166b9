"""Slices as pairs of layer numbers: which complete a path, and the cheapest way to mend a broken one. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

Piece = tuple[int, int]
"""Layers [start, stop)."""


def on_paths(pieces: Collection[Piece], num_layers: int) -> set[Piece]:
    """The pieces that lie on a path of whole pieces from layer 0 to the last one."""
    forward, backward = {0}, {num_layers}
    for start, stop in sorted(pieces):
        if start in forward:
            forward.add(stop)
    for start, stop in sorted(pieces, key=lambda piece: -piece[1]):
        if stop in backward:
            backward.add(start)
    return {piece for piece in pieces if piece[0] in forward and piece[1] in backward}


def cheapest_path(prices: Mapping[Piece, float], layer_prices: Sequence[float], opening: float) -> list[Piece] | None:
    """Pieces from layer 0 to the last one, in order, that leave the cheapest holes between them (what lies between two
    pieces of the answer is a hole). A piece costs its price, a hole its layers' prices and `opening`.

    None when the cheapest way uses no piece at all."""
    num_layers = len(layer_prices)
    ending: dict[int, list[tuple[int, float]]] = {}
    for (start, stop), price in prices.items():
        ending.setdefault(stop, []).append((start, price))
    whole, hole = [0.0] + [math.inf] * num_layers, [math.inf] * (num_layers + 1)
    came: list[int | None] = [None] * (num_layers + 1)
    """Where the piece began that ends here."""
    opened: list[int] = [0] * (num_layers + 1)
    """Where the hole began that goes on here."""
    for at in range(1, num_layers + 1):
        is_new = whole[at - 1] + opening <= hole[at - 1]
        hole[at] = (whole[at - 1] + opening if is_new else hole[at - 1]) + layer_prices[at - 1]
        opened[at] = at - 1 if is_new else opened[at - 1]
        for start, price in ending.get(at, ()):
            cost = min(whole[start], hole[start]) + price
            if cost < whole[at]:
                whole[at], came[at] = cost, start
    return _walked_back(whole, hole, came, opened) or None


def least_wait(waits: Mapping[Piece, float], num_layers: int) -> float:
    """When the first whole path of these pieces is there, each of which is there after its wait; infinite: never."""
    there = [0.0] + [math.inf] * num_layers
    for (start, stop), wait in sorted(waits.items()):
        there[stop] = min(there[stop], max(there[start], wait))
    return there[num_layers]


def _walked_back(
    whole: Sequence[float], hole: Sequence[float], came: Sequence[int | None], opened: Sequence[int]
) -> list[Piece]:
    path: list[Piece] = []
    at = len(whole) - 1
    while at > 0:
        start = came[at]
        if start is None or hole[at] < whole[at]:
            at = opened[at]
        else:
            path.append((start, at))
            at = start
    return path[::-1]


def holes_of(path: Sequence[Piece], num_layers: int) -> list[Piece]:
    """What lies between these pieces, before the first and behind the last one."""
    edges = [0, *(edge for piece in path for edge in piece), num_layers]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(start, stop) for start, stop in pairs if start < stop]
