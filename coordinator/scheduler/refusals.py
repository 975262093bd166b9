"""What a request that cannot be served is told."""

from __future__ import annotations

from coordinator.scheduler.commands import RefuseRequest
from coordinator.scheduler.state import Waiting
from protocol.values import SessionId

MAX_RETRY_AFTER_S = 60.0


def queue_full(session_id: SessionId, num_others: int, wait_s: float | None) -> RefuseRequest:
    """Too many wait; `wait_s` is what this one would have to."""
    message = f"{num_others} requests wait for this model already; try again later."
    return RefuseRequest(session_id, "queue_full", message, min(MAX_RETRY_AFTER_S, wait_s or MAX_RETRY_AFTER_S))


def too_late(waiting: Waiting, wait_s: float | None) -> RefuseRequest:
    """`wait_s`: what it would have had to wait; None when its time is over."""
    if wait_s is None:
        return RefuseRequest(waiting.session_id, "deadline", "No chain was free before the request's deadline.", None)
    message = f"The request would wait for about {wait_s:.0f} s, longer than its deadline allows."
    return RefuseRequest(waiting.session_id, "deadline", message, min(MAX_RETRY_AFTER_S, wait_s))
