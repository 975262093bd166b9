"""Who waits for one model, in the order in which they are tried. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) between tenants, by the KV tokens that requests reserve:
each tenant has a virtual time at which its next request starts, which moves on by the tokens of each one that did. Who
comes back after a pause begins at the present virtual time: no credit is saved up, and nothing is held against anybody.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from coordinator.scheduler.state import Waiting
from protocol.values import SessionId

MAX_PASSED = 16
"""A request that has let so many later ones pass, because it found no room, lets no more pass."""
MAX_IDLE_TENANTS = 1024


@dataclass(slots=True)
class Place:
    """A request in the queue. `number` counts arrivals."""

    waiting: Waiting
    number: int
    since_s: float
    num_passed: int = 0


@dataclass(slots=True)
class Tenant:
    start: float
    """Virtual time, in tokens."""
    places: dict[SessionId, Place] = field(default_factory=dict)


class FairQueue:
    """Resumed requests come first, in order of arrival: their users have seen half an answer already."""

    def __init__(self) -> None:
        self._resumed: dict[SessionId, Place] = {}
        self._tenants: dict[str, Tenant] = {}
        self._busy: dict[str, Tenant] = {}
        """Those of whom somebody waits."""
        self._tenant_of: dict[SessionId, str] = {}
        self._now = 0.0
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._tenant_of)

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._tenant_of

    # ------------------------------------------------------------ changes

    def add(self, waiting: Waiting, now_s: float) -> Place:
        """At the end of its tenant's, or of the resumed ones."""
        self.remove(waiting.session_id)
        place = Place(waiting, self._num_added, now_s)
        self._num_added += 1
        self._tenant_of[waiting.session_id] = waiting.tenant
        if waiting.resumed:
            self._resumed[waiting.session_id] = place
            return place
        tenant = self._tenants.setdefault(waiting.tenant, Tenant(self._now))
        if not tenant.places:
            tenant.start = max(tenant.start, self._now)
            self._busy[waiting.tenant] = tenant
        tenant.places[waiting.session_id] = place
        return place

    def remove(self, session_id: SessionId) -> None:
        """It waits no more, without having been served. Harmless for one that does not wait."""
        name = self._tenant_of.pop(session_id, None)
        if name is None or self._resumed.pop(session_id, None) is not None:
            return
        tenant = self._tenants[name]
        del tenant.places[session_id]
        if not tenant.places:
            del self._busy[name]
        if len(self._tenants) > MAX_IDLE_TENANTS:
            self._forget_idle()

    def started(self, session_id: SessionId, passed: Iterable[Place] = ()) -> None:
        """It has got its chain: its tenant pays for it, and these, all before it in the order, have been passed."""
        place = self.place(session_id)
        for other in passed:
            other.num_passed += 1
        tenant = self._tenants.get(place.waiting.tenant)
        if tenant is not None and session_id in tenant.places:
            self._now = max(self._now, tenant.start)
            tenant.start += place.waiting.num_tokens
        self.remove(session_id)

    def _forget_idle(self) -> None:
        idle = [name for name, t in self._tenants.items() if not t.places and t.start <= self._now]
        for name in idle:
            del self._tenants[name]

    # ------------------------------------------------------------ questions

    def place(self, session_id: SessionId) -> Place:
        """KeyError for one that does not wait."""
        if session_id in self._resumed:
            return self._resumed[session_id]
        return self._tenants[self._tenant_of[session_id]].places[session_id]

    def order(self) -> Iterator[Place]:
        """As they would be served if each found room; not to be changed meanwhile."""
        yield from self._resumed.values()
        heap: list[tuple[float, int, Place, Iterator[Place]]] = []
        for tenant in self._busy.values():
            places = iter(tenant.places.values())
            place = next(places)
            heap.append((tenant.start, place.number, place, places))
        heapq.heapify(heap)
        while heap:
            start, _, place, places = heap[0]
            yield place
            following = next(places, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (start + place.waiting.num_tokens, following.number, following, places))

    def number(self, session_id: SessionId) -> int:
        """Its place in the order; the next one to be served has number 1. KeyError for one that does not wait."""
        if session_id in self._resumed:
            return 1 + list(self._resumed).index(session_id)
        own = self._tenants[self._tenant_of[session_id]]
        start, number = own.start, own.places[session_id].number
        for place in own.places.values():
            if place.number == number:
                break
            start += place.waiting.num_tokens
        return 1 + len(self._resumed) + sum(_num_before(tenant, start, number) for tenant in self._busy.values())

    def one_too_many(self) -> Waiting | None:
        """The newest request of the tenant with the most (of several, of the one that came last); None if all are
        resumed ones, which are never turned away."""
        newest = [(len(t.places), next(reversed(t.places.values()))) for t in self._busy.values()]
        if not newest:
            return None
        return max(newest, key=lambda entry: (entry[0], entry[1].number))[1].waiting


def _num_before(tenant: Tenant, start: float, number: int) -> int:
    """Requests of the tenant that are served before one that starts at this virtual time."""
    num, at = 0, tenant.start
    for place in tenant.places.values():
        if at > start or (at == start and place.number >= number):
            break
        num += 1
        at += place.waiting.num_tokens
    return num
