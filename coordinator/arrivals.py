"""A session in the words of the scheduler."""

from __future__ import annotations

from coordinator.affinity import affinity_of
from coordinator.scheduler import events as ev
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Session
from protocol.values import KV_BLOCK_TOKENS


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
    )
