"""A link map in which nodes are points on a plane and regions are known: for tests of what uses links."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coordinator.scheduler.links import Floats, Ints, LinkMap
from protocol.values import NodeId


@dataclass
class PlaneLinks(LinkMap):
    """A node's place is in seconds; one way takes the distance and what both add at their ends."""

    num_nodes: int = 0
    places: Floats = field(default_factory=lambda: np.zeros((0, 3)))
    """x, y and what the node's own line adds."""
    rates: Floats = field(default_factory=lambda: np.zeros(0))
    """Bytes per second out of the node."""
    in_region: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    numbers: dict[NodeId, int] = field(default_factory=dict)

    def set(self, node_id: NodeId, x: float = 0.0, y: float = 0.0, own: float = 0.0, *, region: int = 0) -> None:
        at = self.row(node_id)
        self.places[at] = (x, y, own)
        self.in_region[at] = region

    def row(self, node_id: NodeId) -> int:
        at = self.numbers.setdefault(node_id, len(self.numbers))
        if at >= len(self.places):
            more = max(16, at + 1)
            self.places = np.concatenate([self.places, np.zeros((more, 3))])
            self.rates = np.concatenate([self.rates, np.full(more, 12.5e6)])
            self.in_region = np.concatenate([self.in_region, np.zeros(more, dtype=np.intp)])
        return at

    def delay_s(self, a: NodeId, b: NodeId) -> float:
        if a == b:
            return 0.0
        x, y, own = self.places[self.row(a)].tolist()
        x2, y2, own2 = self.places[self.row(b)].tolist()
        return float(((x - x2) ** 2 + (y - y2) ** 2) ** 0.5 + own + own2)

    def bytes_per_s(self, a: NodeId, b: NodeId) -> float:
        return float("inf") if a == b else float(self.rates[self.row(a)])

    def hop_s(self, a: NodeId, b: NodeId, num_bytes: float) -> float:
        return self.delay_s(a, b) + num_bytes / self.bytes_per_s(a, b)

    def delays_s(self, sources: Ints, targets: Ints) -> Floats:
        a, b = self.places[sources], self.places[targets]
        apart = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
        delays = apart + a[:, None, 2] + b[None, :, 2]
        return np.asarray(np.where(sources[:, None] == targets[None, :], 0.0, delays))

    def upload(self, row: int) -> float:
        return float(self.rates[row])

    def uploads(self, rows: Ints) -> Floats:
        return self.rates[rows]

    def region(self, node_id: NodeId) -> int:
        return int(self.in_region[self.row(node_id)])

    def regions(self, rows: Ints) -> Ints:
        return self.in_region[rows]
