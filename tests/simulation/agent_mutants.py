"""Bugs for the agent of a node; mutants.py says what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from client import ipc
from client.agent.commands import TellPool, TellWorker
from client.agent.core import AgentCore
from client.agent.events import PoolLost, WorkerDied
from client.agent.switch import Switch
from protocol.frames import Frame, Segment
from protocol.messages import CloseSession
from tests.simulation.planting import Patch, mutant


@mutant
def no_fence_at_the_switch() -> Sequence[Patch]:
    """Rows of any epoch are let in."""
    check = Switch._check

    def lax(self: Switch, frame: Frame, segment: Segment, *rest: Any) -> Any:
        leg = self._leg_for(segment)
        epoch = segment.epoch if leg is None else leg.epoch
        return check(self, frame, segment._replace(epoch=epoch), *rest)

    return [(Switch, "_check", lax)]


@mutant
def no_check_of_positions_at_the_switch() -> Sequence[Patch]:
    check = Switch._check

    def lax(self: Switch, frame: Frame, segment: Segment, *rest: Any) -> Any:
        leg = self._leg_for(segment)
        if leg is not None and segment.epoch == leg.epoch:
            leg.next_position = segment.position
        return check(self, frame, segment, *rest)

    return [(Switch, "_check", lax)]


@mutant
def kv_is_kept_after_the_close() -> Sequence[Patch]:
    """The agent forgets the session and does not tell its worker."""

    def silent(self: AgentCore, message: Any) -> Any:
        self.switch.close(message.session_id, message.epoch)
        return []

    patch_table = AgentCore.__init__

    def init(self: AgentCore, *args: Any) -> None:
        patch_table(self, *args)
        self._pool_handlers[CloseSession] = lambda message: silent(self, message)

    return [(AgentCore, "__init__", init)]


@mutant
def sessions_outlive_the_connection() -> Sequence[Patch]:
    """What ran for a pool that is gone is kept."""
    handle = AgentCore.handle

    def quiet(self: AgentCore, event: Any, now_s: float = 0.0) -> Any:
        is_end, commands = isinstance(event, PoolLost), handle(self, event, now_s)
        return [c for c in commands if not (is_end and isinstance(c, TellWorker))]

    return [(AgentCore, "handle", quiet)]


@mutant
def a_dead_worker_is_not_reported() -> Sequence[Patch]:
    handle = AgentCore.handle

    def quiet(self: AgentCore, event: Any, now_s: float = 0.0) -> Any:
        commands = handle(self, event, now_s)
        is_death = isinstance(event, WorkerDied)
        return [c for c in commands if not (is_death and isinstance(c, TellPool))]

    return [(AgentCore, "handle", quiet)]


@mutant
def failures_of_sessions_are_not_reported() -> Sequence[Patch]:
    handle = AgentCore.handle

    def quiet(self: AgentCore, event: Any, now_s: float = 0.0) -> Any:
        is_failure = isinstance(getattr(event, "message", None), ipc.SessionFailed)
        return [] if is_failure else handle(self, event, now_s)

    return [(AgentCore, "handle", quiet)]
