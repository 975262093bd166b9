"""How many bytes neighbours may send here only to measure their links. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.values import NodeId

WINDOW_S = 600.0
"""A neighbour measures a link once in this time (client/agent/probing.py)."""
SENDER_BYTES = 2**20
"""Three measurements: a node that has been started again does not know that it measured already."""
TOTAL_BYTES = 64 * 2**20
"""For all senders together, who choose the ids that they give. It is 0.1 MB/s."""


@dataclass(slots=True)
class ProbeGuard:
    """Counts what came since the window began."""

    _began_s: float = 0.0
    _num_bytes: dict[NodeId, int] = field(default_factory=dict)

    def takes(self, sender: NodeId, num_bytes: int, now_s: float) -> bool:
        """Whether these bytes are still within the limits; they count either way."""
        if now_s - self._began_s >= WINDOW_S:
            self._began_s = now_s
            self._num_bytes.clear()
        total = sum(self._num_bytes.values())
        if total + num_bytes > TOTAL_BYTES:
            return False
        self._num_bytes[sender] = self._num_bytes.get(sender, 0) + num_bytes
        return self._num_bytes[sender] <= SENDER_BYTES
