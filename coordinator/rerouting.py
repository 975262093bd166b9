"""Which sessions move because they are late or slow, where from, and what the scheduler is told of it. Pure.

Moves for other reasons (a node that left, a broken chain, another plan) are the core's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.arrivals import arrival_of
from coordinator.bad_links import BadLinks
from coordinator.lateness import Late, Lateness
from coordinator.neighbours import contacts, pairs_of, relayed_link
from coordinator.nodes import NodeView
from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Contact, Session
from protocol.messages import RowsAt, WhereAreRows
from protocol.values import NodeId, SessionId

HANG_WEIGHT = 3.0
"""A device that hangs is no better for being idle: four times as expensive at first."""
MOVE_MARGIN_S, MOVE_FACTOR = 1.0, 1.5
"""A slow session moves for a gain of so much more than computing it anew is expected to take."""


@dataclass(frozen=True, slots=True)
class Ask:
    node_id: NodeId
    message: WhereAreRows


@dataclass(frozen=True, slots=True)
class Move:
    """The scheduler is told, then the session moves away from these devices, if that is possible; None: it stays. One
    that is only slow does not leave its chain before another one has computed what there is, if that is possible.

    It is about this epoch of the session: one that has moved meanwhile stays where it is."""

    session_id: SessionId
    epoch: int
    avoid: frozenset[DeviceKey] | None
    news: tuple[ev.Event, ...] = ()
    is_slow: bool = False


class Rerouting:
    """`sessions` and `nodes` are the core's own. Tell `lateness` of every change of a session (`follow`)."""

    def __init__(
        self,
        scheduler: Scheduler,
        sessions: Mapping[SessionId, Session],
        nodes: Mapping[NodeId, NodeView],
    ) -> None:
        self.lateness = Lateness(sessions, nodes, scheduler.chain_times)
        self._scheduler, self._sessions, self._nodes = scheduler, sessions, nodes
        self._bad_links = BadLinks()

    def contacts(self, chain: tuple[cmd.ChainStage, ...], now_s: float) -> dict[NodeId, Contact]:
        """How the nodes of a chain are reached: where a link lost rows of late, through the relay."""
        relayed = {pair[1] for pair in pairs_of(chain) if self._bad_links.is_bad(pair, now_s)}
        return contacts(self._nodes, chain, relayed)

    def look(self, now_s: float) -> list[Ask | Move]:
        """What is to be asked and done about answers that are late by now."""
        found = self.lateness.look(now_s)
        return [self._move(f, now_s) if isinstance(f, Late) else Ask(*f) for f in found]

    def heard(self, node_id: NodeId, message: RowsAt, now_s: float) -> list[Move]:
        return [self._move(late, now_s) for late in self.lateness.heard(node_id, message, now_s)]

    def slow(self, now_s: float) -> list[Move]:
        """Slow is not dead: what runs moves only if it is done sooner elsewhere, with what it has to compute anew.

        Where the forecast knows nothing better than the very chain, what was measured is against the forecast: then a
        chain on other devices may show that it is faster, and the session stays until it has."""
        found = [self._sessions[session_id] for session_id in self.lateness.deadlines.slow(now_s)]
        slow = [session for session in found if session.hedge is None]
        better = [session for session in slow if self._is_better_off(session, now_s)]
        for session in better:
            self.lateness.moves(session.order.session_id)
        moves = [Move(session.order.session_id, session.epoch, frozenset(), is_slow=True) for session in better]
        others = [s for s in slow if s not in better and self._is_better_off(s, now_s, _own(s))]
        self.lateness.counts["slow"] += len(better) + len(others)
        return [*moves, *(Move(s.order.session_id, s.epoch, None, is_slow=True) for s in others)]

    # ------------------------------------------------------------ late

    def _move(self, late: Late, now_s: float) -> Move:
        """Whoever is to blame is trusted less; the session moves if there is somewhere else."""
        news = tuple(ev.DeviceBroke(device, HANG_WEIGHT) for device in late.blamed)
        epoch = self._sessions[late.session_id].epoch
        if late.cut is not None:
            return self._around(late, late.cut, now_s)
        if self._has_nowhere(late, now_s):
            self.lateness.stays(late.session_id, now_s)
            return Move(late.session_id, epoch, None, news)
        self.lateness.moves(late.session_id)
        return Move(late.session_id, epoch, late.avoid, news)

    def _around(self, late: Late, cut: tuple[NodeId, NodeId], now_s: float) -> Move:
        """Sessions that are opened from now on do not try this link directly, and what that costs is known. Only if
        the relay did not help does the session keep away from the receiver; nobody is blamed."""
        avoid = late.avoid if self._bad_links.is_bad(cut, now_s) else frozenset[DeviceKey]()
        self._bad_links.add(cut, now_s)
        link = relayed_link(self._nodes, *cut)
        self.lateness.moves(late.session_id)
        news = () if link is None else (ev.LinksSeen((link,)),)
        return Move(late.session_id, self._sessions[late.session_id].epoch, avoid, news)

    def _has_nowhere(self, late: Late, now_s: float) -> bool:
        """Whether nobody else could do it, so that the same device would have to begin anew. Who has waited for long
        tries even that."""
        if not late.blamed or self.lateness.deadlines.is_impatient(late.session_id):
            return False
        arrival = arrival_of(self._sessions[late.session_id], resumed=True, avoid=late.avoid)
        return self._scheduler.elsewhere(arrival, now_s) is None

    # ------------------------------------------------------------ slow

    def _is_better_off(self, session: Session, now_s: float, avoid: frozenset[DeviceKey] = frozenset()) -> bool:
        route = self._scheduler.elsewhere(arrival_of(session, resumed=True, avoid=avoid), now_s)
        if route is None or [device.key for device in route.devices] == [stage.device for stage in session.chain]:
            return False
        gain_s = self.lateness.gain_s(session, route.tpot_s, self._num_to_come(session))
        return gain_s > MOVE_MARGIN_S + MOVE_FACTOR * route.ttft_s

    def _num_to_come(self, session: Session) -> float:
        """How many tokens the answer may still have: however many there are, as many as one has on average."""
        usual = self._scheduler.workloads.workload(session.order.manifest_hash).num_answer_tokens
        return min(usual, session.order.max_new_tokens - len(session.tokens))


def _own(session: Session) -> frozenset[DeviceKey]:
    return frozenset(stage.device for stage in session.chain)
