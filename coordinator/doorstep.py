"""How many connections may wait whose node is not known yet, in all and from one address; and how often an address may
come in vain. Pure.

Whoever connects and says nothing is let go by the handshake's deadline; until then others must find room too. Whoever
was turned away, and comes back at once without end, costs a lookup and a line in the log each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.throttle import Throttle, network_of

MAX_VISITORS = 256
MAX_PER_ADDRESS = 8
"""Machines behind one router that come back all at once try again a moment later, each at a time of its own."""
MAX_IN_VAIN = 30
"""At once, and in a minute. An app that was refused asks its owner before it tries again."""


class Doorstep:
    """The connections that have not been welcomed or refused yet. "" is an address that the server does not know."""

    def __init__(self, max_visitors: int = MAX_VISITORS, max_per_address: int = MAX_PER_ADDRESS) -> None:
        self._max_visitors = max_visitors
        self._max_per_address = max_per_address
        self._visitors: Counter[str] = Counter()
        self._in_vain = Throttle(num_attempts=MAX_IN_VAIN)

    def has_room(self, address: str, now_s: float) -> bool:
        """Whether one more may wait that comes from there."""
        if self._visitors.total() >= self._max_visitors:
            return False
        if not address:
            return True
        return self._visitors[network_of(address)] < self._max_per_address and not self._in_vain.wait_s(address, now_s)

    def turned_away(self, address: str, now_s: float) -> None:
        """One that came from there was not let in."""
        if address:
            self._in_vain.take(address, now_s)

    @contextmanager
    def visit(self, address: str) -> Iterator[None]:
        """One connection, for as long as its node is not known."""
        network = network_of(address)
        self._visitors[network] += 1
        try:
            yield
        finally:
            self._visitors[network] -= 1
            self._visitors += Counter()  # forgets who is gone

    def __len__(self) -> int:
        return self._visitors.total()
