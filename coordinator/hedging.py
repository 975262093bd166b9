"""When a session may have a second chain (hedges.py), and for how long it is given one. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coordinator.arrivals import arrival_of
from coordinator.hedges import CATCH_UP_TOKENS, Hedge
from coordinator.neighbours import keepers, understand
from coordinator.nodes import NodeView
from coordinator.rerouting import Rerouting
from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.sessions import Session
from protocol.values import NodeId, SessionId

LEAST_PAUSE_S = 0.3
"""A move that is expected to cost less of a pause than this is not worth computing everything twice. Of whose chain no
node stays computes it elsewhere anyway."""
MOST_SLOWER = 1.5
"""A second chain may be expected to take so much longer per token than the best, which may share nodes with the first:
what is saved is a pause, what it costs is every token from then on."""
SHARE_OF_TIME = 0.5
"""A node that leaves within so many seconds is not waited for if the other chain is expected to take longer than this
share of them to compute the log."""
LEAST_TIME_S, LEAST_HURRIED_S, SAFETY = 10.0, 2.5, 4.0
"""A second chain that has not been first within that, and so many times the forecast, is given up; where a node is
about to go (8 s, if it goes at once), early enough for another one."""


class Hedging:
    """`sessions` and `nodes` are the core's own."""

    def __init__(
        self,
        scheduler: Scheduler,
        sessions: Mapping[SessionId, Session],
        nodes: Mapping[NodeId, NodeView],
        rerouting: Rerouting,
    ) -> None:
        self._scheduler, self._sessions, self._nodes, self._rerouting = scheduler, sessions, nodes, rerouting
        self.least_pause_s, self.catch_up_tokens = LEAST_PAUSE_S, CATCH_UP_TOKENS
        self._until_s: dict[SessionId, float] = {}

    def wanted(self, session: Session, now_s: float, leaves_at_s: float = math.inf) -> ev.HedgeWanted | None:
        """What to ask the scheduler; None: there is no use in a second chain. `leaves_at_s`: when its own will go."""
        if not session.may_hedge:
            return None
        arrival = arrival_of(session, resumed=True, avoid=session.avoid)
        best = self._scheduler.elsewhere(arrival, now_s)
        has_to_move = all(self._nodes[stage.device.node_id].is_leaving for stage in session.chain)
        if best is None or (best.ttft_s < self.least_pause_s and not has_to_move):
            return None
        return ev.HedgeWanted(arrival, SHARE_OF_TIME * (leaves_at_s - now_s), MOST_SLOWER * best.tpot_s, has_to_move)

    def hedge(self, command: cmd.StartHedge, now_s: float) -> Hedge | None:
        """The second chain; None if it would be in vain. Who has to go soon is relieved only by a chain that can go on
        behind a part of what it has computed: tokens come at the same pace on both."""
        session, chain = self._sessions[command.session_id], command.chain
        is_hurried = any(self._nodes[stage.device.node_id].is_leaving for stage in session.chain)
        contacts = self._rerouting.contacts(chain, now_s)
        able, num_tokens = keepers(self._nodes, chain), self.catch_up_tokens
        hedge = Hedge(chain, contacts, able, is_hurried, catch_up_tokens=num_tokens)
        is_vain = is_hurried and not hedge.keeps
        if is_vain or not understand(self._nodes, chain, session.order.sampling):
            return None
        least_s = LEAST_HURRIED_S if is_hurried else LEAST_TIME_S
        self._until_s[command.session_id] = now_s + max(least_s, SAFETY * command.ttft_s)
        return hedge

    def overdue(self, now_s: float) -> list[Session]:
        """Those whose second chain has had its time."""
        running = {s: self._sessions[s] for s in self._until_s if s in self._sessions}
        self._until_s = {s: self._until_s[s] for s, session in running.items() if session.hedge is not None}
        return [running[s] for s, until_s in self._until_s.items() if until_s <= now_s]

    def forgive(self, lag_s: float) -> None:
        """The judge was away for so long: nobody is late by that."""
        self._until_s = {session_id: until_s + lag_s for session_id, until_s in self._until_s.items()}

    def validate(self) -> None:
        """Sessions and scheduler must agree (AssertionError)."""
        hedged = {s: session.hedge for s, session in self._sessions.items() if session.hedge is not None}
        booked = {s: running.devices for s, running in self._scheduler.state.hedges.items()}
        assert booked == {s: tuple(stage.device for stage in hedge.chain) for s, hedge in hedged.items()}, booked
        stages = [stage for hedge in hedged.values() for stage in hedge.chain]
        assert all(self._scheduler.is_current(stage.device, stage.generation) for stage in stages), stages
        assert hedged.keys() <= self._until_s.keys()
