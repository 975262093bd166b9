"""How long to wait after the n-th failure in a row: for reconnects, restarts and retries on both sides."""

from __future__ import annotations

MAX_DOUBLINGS = 20
"""2.0 ** n overflows at n = 1024, which a machine that is off the network for some hours reaches."""


def doubled_s(base_s: float, num_doublings: int, limit_s: float) -> float:
    """`base_s` doubled that many times, `limit_s` at most."""
    return min(limit_s, base_s * 2.0 ** min(num_doublings, MAX_DOUBLINGS))
