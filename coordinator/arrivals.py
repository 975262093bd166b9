"""A session in the words of the scheduler."""

from __future__ import annotations

from coordinator.affinity import affinity_of
from coordinator.scheduler import events as ev
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Session
from protocol.backoff import doubled_s
from protocol.values import KV_BLOCK_TOKENS

REST_BASE_S, MAX_REST_S = 0.5, 4.0
"""Before the second try on the same device, and so on, doubled with each: what broke there may last for a moment, and a
session has few tries (sessions.MAX_BREAKS). The first is made at once: often only the way between two nodes broke."""


def arrival_of(
    session: Session,
    *,
    resumed: bool = False,
    avoid: frozenset[DeviceKey] = frozenset(),
    kept: tuple[DeviceKey, ...] = (),
) -> ev.RequestArrived:
    """What the scheduler hears of a session that needs a chain. One that ran already waits for as long as it takes."""
    order, log = session.order, session.log
    return ev.RequestArrived(
        order.session_id,
        order.manifest_hash,
        -(-order.num_tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS,
        resumed,
        avoid,
        num_prompt_tokens=len(log),
        tenant=order.tenant,
        affinity=affinity_of(log, order.tenant),
        deadline_s=None if resumed else order.deadline_s,
        kept=kept,
        return_after_s=rest_s(session.num_breaks),
    )


def rest_s(num_breaks: int) -> float:
    """After so many chains in turn that broke under the session."""
    return doubled_s(REST_BASE_S, num_breaks - 2, MAX_REST_S) if num_breaks > 1 else 0.0
