"""What those hear who wait for their first chain: their place, whenever it is another one."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.effects import ToUser
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.sessions import Queued
from protocol.values import SessionId

QUEUE_NEWS_S = 1.0
"""Who waits hears of a new place at most this often."""


class QueueNews:
    """Who waits, what each was told last, and when."""

    def __init__(self) -> None:
        self._told: dict[SessionId, tuple[Queued, float]] = {}

    @property
    def told(self) -> frozenset[SessionId]:
        return frozenset(self._told)

    def tell(self, session_id: SessionId, place: QueuePlace, now_s: float) -> ToUser:
        """Its place now, to one that waits."""
        queued = Queued(place.place, place.num_waiting, place.expected_wait_s)
        self._told[session_id] = (queued, now_s)
        return ToUser(session_id, queued)

    def forget(self, session_id: SessionId) -> None:
        """It waits no more. Harmless for one that never did."""
        self._told.pop(session_id, None)

    def changes(self, places: Mapping[SessionId, QueuePlace], now_s: float) -> list[ToUser]:
        """News for those whose place is another one than they were told."""
        return [
            self.tell(session_id, places[session_id], now_s)
            for session_id, (told, at_s) in list(self._told.items())
            if _is_news(places[session_id], told) and now_s - at_s >= QUEUE_NEWS_S
        ]


def _is_news(place: QueuePlace, told: Queued) -> bool:
    """Another place, or the first idea of how long it will take."""
    return place.place != told.place or (told.expected_wait_s is None and place.expected_wait_s is not None)
