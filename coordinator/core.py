"""The pool as one pure object: scheduler and sessions tied together. Calls in, effects out; time is an argument.

The hub (asyncio) calls it and carries the effects out in order. Everything that decides anything is here or below, so
that a whole pool runs on virtual time in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from coordinator.arrivals import arrival_of
from coordinator.effects import DropNode, Effect, ToNode, ToUser
from coordinator.hedges import MAX_HEDGES
from coordinator.hedging import Hedging
from coordinator.neighbours import ask_links, keepers, strangers, understand
from coordinator.node_news import NodeNews
from coordinator.nodes import NodeView
from coordinator.orders import assign, measure
from coordinator.poison import CrashBook
from coordinator.queue_news import QueueNews
from coordinator.relaying import relay_target
from coordinator.rerouting import Ask, Move, Rerouting
from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.state import DeviceKey, ModelFacts
from coordinator.sessions import (
    KV_FULL,
    Action,
    Deliver,
    Failed,
    HedgeEnded,
    NeedChain,
    Order,
    Rerouted,
    SendFrame,
    SendMessage,
    Session,
    SessionState,
    WantMove,
)
from protocol.errors import CloseCode, FrameError, MessageError, MessageFault
from protocol.frames import decode_frame
from protocol.messages import (
    DeviceFailed,
    Hello,
    Leaving,
    NodeMessage,
    ReleaseSlice,
    RowsAt,
    SessionBroken,
    SessionOpened,
    TokensSampled,
)
from protocol.pieces import pieces_of
from protocol.values import NodeId, SessionId

LEASE_S = 4.0
"""A node that says nothing for this long is lost; it sends a heartbeat every HEARTBEAT_S. With a tick on top, a dead
machine is out of the view and out of all chains within 5 s."""
HEARTBEAT_S = 1.0
TICK_S = 0.5
MAX_STALL_S = 0.25
"""A coordinator that wakes up so much too late was itself stopped, and judges nobody by the time that it missed."""
MAX_FAULTS = 100
WORKER_DIED = "worker_died"
"""Code of DeviceFailed: the device's program crashed."""
DEVICE_FAULTS = frozenset({"internal", "non_finite", "out_of_memory"})
"""Codes of SessionBroken that speak against the device itself; others are a lost link's, or a change of plan's."""
POISON_SENTENCE = "The programs of two machines in turn crashed while they computed the same token of this answer."
TOO_OLD_SENTENCE = "A node of an older version would answer; it knows no penalties, logit_bias, min_p or logprobs."


class PoolCore:
    """All decisions of one pool. `scheduler` may be given, with a policy of its own."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        self.scheduler = scheduler or Scheduler()
        self.nodes: dict[NodeId, NodeView] = {}
        self.sessions: dict[SessionId, Session] = {}
        self._models: dict[str, ModelFacts] = {}
        self._queue_news = QueueNews()
        self._crashes = CrashBook()
        self._looked_s: float | None = None
        self.rerouting = Rerouting(self.scheduler, self.sessions, self.nodes)
        self.lateness = self.rerouting.lateness
        self.hedging = Hedging(self.scheduler, self.sessions, self.nodes, self.rerouting)
        self._node_news = NodeNews(self.scheduler, self.nodes)
        self._message_handlers: dict[type, Callable[[NodeId, Any, float], list[Effect]]] = {
            **dict.fromkeys(self._node_news.kinds, self._told_news),
            DeviceFailed: self._device_failed,
            SessionOpened: self._session_opened,
            SessionBroken: self._session_broken,
            TokensSampled: self._tokens_sampled,
            RowsAt: self._rows_at,
            Leaving: self._leaving,
        }

    # ------------------------------------------------------------ calls

    def add_model(self, model: ModelFacts, now_s: float, num_replicas: int = 1) -> list[Effect]:
        """Serve it; `num_replicas` is the operator's floor."""
        self._models[model.manifest_hash] = model
        return self._schedule(ev.ModelAdded(model, num_replicas), now_s)

    def remove_model(self, manifest_hash: str, now_s: float) -> list[Effect]:
        """Serve it no more: its answers fail with `model_unloaded`. Harmless for a model that is not served."""
        for view in self.nodes.values():
            view.drop_measuring(manifest_hash)
        effects = self._schedule(ev.ModelRemoved(manifest_hash), now_s)
        self._models.pop(manifest_hash, None)
        return effects

    def drain_node(self, node_id: NodeId, on: bool, now_s: float) -> list[Effect]:
        """Nothing new for this node, or all of it again. It is remembered for a node that is not connected now."""
        view = self.nodes.get(node_id)
        if view is not None:
            view.drains_anyway, view.is_draining = on, on or view.is_leaving
        is_on = on if view is None else view.is_draining
        effects = self._schedule(ev.NodeDraining(node_id, is_on), now_s)  # first: others wait for a second chain's room
        return [*effects, *(self._end_hedges_over(node_id, now_s) if is_on else [])]

    def remove_node(self, node_id: NodeId, reason: str, now_s: float) -> list[Effect]:
        """The operator does not want it here. Harmless for a node that is not connected."""
        if node_id not in self.nodes:
            return []
        return [*self.node_lost(node_id, now_s), DropNode(node_id, reason, CloseCode.NOT_ALLOWED)]

    def node_joined(self, hello: Hello, now_s: float) -> list[Effect]:
        """A node said hello. An older connection of the same node counts as lost."""
        node_id = NodeId(hello.node_id)
        effects = self.node_lost(node_id, now_s) if node_id in self.nodes else []
        self._looked_s = now_s if self._looked_s is None else self._looked_s
        drains = node_id in self.scheduler.state.draining
        self.nodes[node_id] = NodeView(hello, now_s, is_draining=drains, drains_anyway=drains)
        planned = self._schedule(ev.NodeJoined(node_id, hello.devices, hello.held), now_s)
        unused = self.nodes[node_id].hold(self.scheduler.held_by(node_id))
        return [*effects, *(ToNode(node_id, release) for release in unused), *planned]

    def node_lost(self, node_id: NodeId, now_s: float) -> list[Effect]:
        """The node is gone, with or without a word: its sessions move before anything else is planned."""
        view = self.nodes.pop(node_id, None)
        if view is None:
            return []
        lost = {DeviceKey(node_id, device_id) for device_id in view.devices}
        effects = self._schedule(ev.NodeLeft(node_id), now_s)
        if view.is_draining and not view.drains_anyway:
            effects += self._schedule(ev.NodeDraining(node_id, False), now_s)
        return [*effects, *self._move_sessions(lost, now_s)]

    def node_said(self, node_id: NodeId, message: NodeMessage, now_s: float) -> list[Effect]:
        """A control message of a node that has joined. Raises MessageError for one that does not belong here."""
        if isinstance(message, Hello):
            raise MessageError(MessageFault.UNEXPECTED, "a second hello on one connection")
        self._forgive_stall(now_s)
        self.nodes[node_id].heard_at_s = now_s
        return [*self._message_handlers[type(message)](node_id, message, now_s), *self._judge_suspects(now_s)]

    def node_relayed(self, node_id: NodeId, data: bytes, now_s: float) -> list[Effect]:
        """A data frame for another node that the sender cannot reach directly."""
        self._forgive_stall(now_s)
        self.nodes[node_id].heard_at_s = now_s
        try:
            target = relay_target(self.sessions, node_id, decode_frame(data))
        except FrameError:
            return self._fault(node_id, now_s)
        return [ToNode(target, piece) for piece in pieces_of(data)] if target is not None else []

    def rows_refused(self, node_id: NodeId, data: bytes, now_s: float) -> list[Effect]:
        """More rows wait for this node than may, so these were not taken: their sessions go another way."""
        effects: list[Effect] = []
        for segment in decode_frame(data).segments:
            session = self.sessions.get(segment.session_id)
            if session is not None:
                sentence = "A node does not take its rows."
                actions = session.broken(node_id, segment.epoch, segment.stage, "link_full", sentence)
                effects += self._act(session, actions, now_s)
        return effects

    def request(self, order: Order, now_s: float) -> list[Effect]:
        """A user wants an answer. What this session's user hears first is Queued, Rerouted or Failed."""
        session = self.sessions[order.session_id] = Session(order, avoid=strangers(self.nodes, order.sampling))
        effects = self._schedule(arrival_of(session, avoid=session.avoid), now_s)
        place = self.queue_place(order.session_id)
        return [*effects, self._queue_news.tell(order.session_id, place, now_s)] if place else effects

    def restore(self, order: Order, tokens: tuple[int, ...], epoch: int, now_s: float) -> list[Effect]:
        """An answer of a coordinator before this one goes on behind these tokens; `epoch` is above all of its."""
        session = self.sessions[order.session_id] = Session(order, tokens=list(tokens), epoch=epoch)
        return self._schedule(arrival_of(session, resumed=True), now_s)

    def queue_place(self, session_id: SessionId) -> QueuePlace | None:
        """Where it stands in the queue; None if it does not wait."""
        return self.scheduler.queue_places().get(session_id)

    def cancel(self, session_id: SessionId, now_s: float) -> list[Effect]:
        """The user went away. Harmless for a session that has ended."""
        session = self.sessions.get(session_id)
        return self._act(session, session.end(), now_s) if session else []

    def tick(self, now_s: float) -> list[Effect]:
        """Time passed (about every TICK_S)."""
        self._forgive_stall(now_s)
        self._looked_s = now_s
        silent = [n for n, view in self.nodes.items() if now_s - view.heard_at_s > LEASE_S]
        effects: list[Effect] = []
        for node_id in silent:
            effects += [*self.node_lost(node_id, now_s), DropNode(node_id, f"silent for {LEASE_S:.0f} s")]
        effects += self._end_overdue_hedges(now_s)
        for node_id in [node_id for node_id, view in self.nodes.items() if view.is_leaving]:
            effects += self._clear(node_id, now_s)
        effects += self._reroute([*self.rerouting.look(now_s), *self.rerouting.slow(now_s)], now_s)
        effects += [*self._schedule(ev.TimePassed(), now_s), *self._judge_suspects(now_s)]
        return [*effects, *self._news_of_queue(now_s)]

    def look(self, now_s: float) -> list[Effect]:
        """Look after late answers only: to be called at `next_look_s`, between ticks."""
        self._forgive_stall(now_s)
        self._looked_s = now_s
        return self._reroute(self.rerouting.look(now_s), now_s)

    @property
    def next_look_s(self) -> float:
        """No answer is late before this; inf if none ever is."""
        return self.lateness.next_s

    # ------------------------------------------------------------ what nodes say

    def _told_news(self, node_id: NodeId, message: NodeMessage, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for event in self._node_news.events(node_id, message, now_s):
            effects += self._schedule(event, now_s)
        return effects

    def _device_failed(self, node_id: NodeId, message: DeviceFailed, now_s: float) -> list[Effect]:
        view = self._node_news.current_view(node_id, message.device_id, message.generation)
        if view is None or view.manifest_hash != message.manifest_hash:
            return []
        view.fail(message.message)
        device = DeviceKey(node_id, message.device_id)
        if message.code == WORKER_DIED:
            self._crashed(device)
        effects = self._schedule(ev.DeviceFailed(device, message.generation, message.max_layers), now_s)
        return [*effects, *self._move_sessions({device}, now_s)]

    def _crashed(self, device: DeviceKey) -> None:
        """Its worker is dead. Rows of a session that was not open yet had not come there.

        Who had a second chain there gets no other: should it be the cause, it has seen enough machines."""
        for session in self.sessions.values():
            if session.hedge is not None and any(stage.device == device for stage in session.hedge.chain):
                session.num_hedges = MAX_HEDGES
        running = [s for s in self.sessions.values() if s.state is SessionState.RUNNING]
        on_it = [s for s in running if any(stage.device == device for stage in s.chain)]
        self._crashes.crashed(device.node_id, [s.order.session_id for s in on_it])

    def _session_opened(self, node_id: NodeId, message: SessionOpened, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        if session is None:
            return []
        actions = session.stage_opened(node_id, message.epoch, message.stage, message.num_cached_tokens)
        return self._act(session, actions, now_s)

    def _session_broken(self, node_id: NodeId, message: SessionBroken, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        device = session.device_at(node_id, message.epoch, message.stage) if session else None
        if session is None or device is None:
            return []
        effects = self._schedule(ev.DeviceBroke(device), now_s) if message.code in DEVICE_FAULTS else []
        if message.code == KV_FULL:
            effects = self._schedule(ev.DeviceFull(device), now_s)
        actions = session.broken(node_id, message.epoch, message.stage, message.code, message.message)
        return [*effects, *self._act(session, actions, now_s)]

    def _tokens_sampled(self, node_id: NodeId, message: TokensSampled, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        return self._act(session, session.sampled(node_id, message), now_s) if session else []

    def _rows_at(self, node_id: NodeId, message: RowsAt, now_s: float) -> list[Effect]:
        return self._reroute(self.rerouting.heard(node_id, message, now_s), now_s)

    def _leaving(self, node_id: NodeId, message: Leaving, now_s: float) -> list[Effect]:
        """At once, or as soon as what runs there runs elsewhere: the node goes when nothing is left on it."""
        if not message.within_s:
            return [*self.node_lost(node_id, now_s), DropNode(node_id, "left")]
        view = self.nodes[node_id]
        view.is_leaving = view.is_draining = True
        view.leaves_at_s = now_s + message.within_s
        return [*self._schedule(ev.NodeDraining(node_id, True), now_s), *self._clear(node_id, now_s)]

    def _clear(self, node_id: NodeId, now_s: float) -> list[Effect]:
        """Its sessions look for other chains: beside their own, or instead of it, now or after their next token."""
        effects = self._end_hedges_over(node_id, now_s)
        for session in list(self.sessions.values()):
            if any(stage.device.node_id == node_id for stage in session.chain):
                effects += self._hedge(session, now_s, self.nodes[node_id].leaves_at_s)
                actions = session.hurry() if session.hedge is not None else session.move_soon()
                effects += self._act(session, actions, now_s)
        return effects

    # ------------------------------------------------------------ second chains

    def _hedge(self, session: Session, now_s: float, leaves_at_s: float = math.inf) -> list[Effect]:
        """A second chain beside its own, if there is one now."""
        wanted = self.hedging.wanted(session, now_s, leaves_at_s)
        return self._schedule(wanted, now_s) if wanted is not None else []

    def _start_hedge(self, command: cmd.StartHedge, now_s: float) -> list[Effect]:
        session, hedge = self.sessions[command.session_id], self.hedging.hedge(command, now_s)
        if hedge is None:
            return self._schedule(ev.HedgeEnded(command.session_id, has_won=False), now_s)
        return self._act(session, session.open_hedge(hedge), now_s)

    def _end_hedges_over(self, node_id: NodeId, now_s: float) -> list[Effect]:
        """A node that gets nothing new is not to be taken over to, either."""
        over = [s for s in self.sessions.values() if s.hedge is not None and s.hedge.is_over(node_id)]
        return self._end_hedges(over, now_s)

    def _end_overdue_hedges(self, now_s: float) -> list[Effect]:
        """Of a chain that has given nothing in its time, one stage hangs: the next chain goes elsewhere."""
        overdue = self.hedging.overdue(now_s)
        for session in overdue:
            if session.hedge is not None and not session.hedge.is_warm:
                session.avoid |= {stage.device for stage in session.hedge.chain}
        return self._end_hedges(overdue, now_s)

    def _end_hedges(self, sessions: list[Session], now_s: float) -> list[Effect]:
        return [effect for session in sessions for effect in self._act(session, session.end_hedge(), now_s)]

    # ------------------------------------------------------------ tying the parts together

    def _schedule(self, event: ev.Event, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for command in self.scheduler.handle(event, now_s):
            effects += self._carry_out(command, now_s)
        return effects

    def _carry_out(self, command: cmd.Command, now_s: float) -> list[Effect]:
        match command:
            case cmd.StartChain(session_id, chain):
                session = self.sessions[session_id]
                if not understand(self.nodes, chain, session.order.sampling):
                    return self._act(session, session.fail("node_too_old", TOO_OLD_SENTENCE), now_s)
                found = self.rerouting.contacts(chain, now_s), keepers(self.nodes, chain)
                return self._act(session, session.start(chain, *found), now_s)
            case cmd.StartHedge():
                return self._start_hedge(command, now_s)
            case cmd.LetGo(session_id):
                session = self.sessions[session_id]
                return self._act(session, session.let_go(), now_s)
            case cmd.RefuseRequest(session_id, code, message, retry_after_s):
                session = self.sessions[session_id]
                return self._act(session, session.fail(code, message, retry_after_s), now_s)
            case cmd.Measure():
                return [measure(self.nodes, command)]
            case cmd.MeasureLinks():
                return self._measure_links(command)
            case cmd.Assign():
                return [assign(self.nodes, command, self._models[command.manifest_hash])]
            case cmd.Release() | cmd.GiveUp():
                return self._release(command, now_s)

    def _measure_links(self, command: cmd.MeasureLinks) -> list[Effect]:
        """Asks those that know how, about others that know what a probe is."""
        asked = ask_links(self.nodes, command)
        return [ToNode(command.node_id, asked)] if asked else []

    def _release(self, command: cmd.Release | cmd.GiveUp, now_s: float) -> list[Effect]:
        """Who lets a slice go ends what runs over it, so sessions move first. That is no fault of the device.

        A measurement (generation 0) cannot be called off: the node is asked for it again."""
        device = command.device
        moved = self._move_sessions({device}, now_s, to_blame=False)
        view = self.nodes[device.node_id].devices[device.device_id]
        view.fail(command.message) if isinstance(command, cmd.GiveUp) else view.idle()
        release = [ToNode(device.node_id, ReleaseSlice(device.device_id, command.generation))]
        return [*moved, *(release if command.generation else [])]

    def _act(self, session: Session, actions: list[Action], now_s: float) -> list[Effect]:
        """Turn a session's actions into effects; ask the scheduler where one of them needs it."""
        effects: list[Effect] = []
        for action in actions:
            match action:
                case SendMessage(node_id, message):
                    effects.append(ToNode(node_id, message))
                case SendFrame(node_id, frame):
                    effects.append(ToNode(node_id, frame))
                case NeedChain(_, avoid, kept, takes_over):
                    arrival = arrival_of(session, resumed=True, avoid=avoid, kept=kept)
                    event = ev.HedgeTakesOver(arrival) if takes_over else arrival
                    effects += self._need_chain(session, event, now_s)
                case WantMove(_, avoid):
                    wanted = ev.MoveWanted(arrival_of(session, resumed=True, avoid=avoid))
                    effects += self._schedule(wanted, now_s)
                case HedgeEnded(session_id, has_won):
                    effects += self._schedule(ev.HedgeEnded(session_id, has_won), now_s)
                case Deliver() | Rerouted() | Failed():
                    effects.append(ToUser(session.order.session_id, action))
                    if isinstance(action, Deliver):
                        self._crashes.progressed(session.order.session_id)
        session_id = session.order.session_id
        self.lateness.follow(session, now_s)
        if session.state is not SessionState.QUEUED:
            self._queue_news.forget(session_id)
        if session.state is SessionState.ENDED and session_id in self.sessions:
            del self.sessions[session_id]
            self._crashes.ended(session_id)
            effects += self._schedule(ev.RequestFinished(session_id, len(session.tokens)), now_s)
        return effects

    def _need_chain(self, session: Session, event: ev.Event, now_s: float) -> list[Effect]:
        """Where workers crash with it, it may have to wait until it can be tried without others."""
        session_id = session.order.session_id
        if not self._crashes.waits(session_id):
            return self._schedule(event, now_s)
        return [
            *self._act(session, session.let_go(), now_s),
            *self._schedule(ev.RequestFinished(session_id), now_s),
        ]

    def _judge_suspects(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        while (guilty := self._crashes.convict()) is not None:
            session = self.sessions[guilty]
            effects += self._act(session, session.fail("failed_poison", POISON_SENTENCE), now_s)
        while (free := self._crashes.next_up()) is not None:
            session = self.sessions[free]
            effects += self._need_chain(session, arrival_of(session, resumed=True, avoid=session.avoid), now_s)
        return effects

    def _reroute(self, found: Sequence[Ask | Move], now_s: float) -> list[Effect]:
        """Carry out what is to be done about late and slow answers."""
        effects: list[Effect] = []
        for each in found:
            if isinstance(each, Ask):
                effects.append(ToNode(each.node_id, each.message))
                continue
            for news in each.news:
                effects += self._schedule(news, now_s)
            session = self.sessions.get(each.session_id)
            if session is None or session.epoch != each.epoch:
                continue
            effects += self._hedge(session, now_s) if each.is_slow else []
            if each.avoid is not None and (session.hedge is None or not each.is_slow):
                effects += self._act(session, session.move_away(each.avoid), now_s)
        return effects

    def _news_of_queue(self, now_s: float) -> list[ToUser]:
        return self._queue_news.changes(self.scheduler.queue_places(), now_s) if self._queue_news.told else []

    def _move_sessions(self, lost: set[DeviceKey], now_s: float, *, to_blame: bool = True) -> list[Effect]:
        effects: list[Effect] = []
        for session in list(self.sessions.values()):
            effects += self._act(session, session.devices_lost(lost, to_blame=to_blame), now_s)
        return effects

    def _fault(self, node_id: NodeId, now_s: float) -> list[Effect]:
        self.nodes[node_id].num_faults += 1
        if self.nodes[node_id].num_faults < MAX_FAULTS:
            return []
        return [
            *self.node_lost(node_id, now_s),
            DropNode(node_id, f"{MAX_FAULTS} bad frames", CloseCode.TOO_MANY_FAULTS),
        ]

    def _forgive_stall(self, now_s: float) -> None:
        """A coordinator that was itself stopped must not judge others by the time it missed.

        What was read since it woke was heard now; nobody is heard in the future."""
        lag_s = now_s - self._looked_s - TICK_S if self._looked_s is not None else 0.0
        if lag_s > MAX_STALL_S:
            self._looked_s = now_s
            self.lateness.forgive(lag_s)
            self.hedging.forgive(lag_s)
            for view in self.nodes.values():
                view.heard_at_s = min(now_s, view.heard_at_s + lag_s)

    def validate(self) -> None:
        """Re-derive the invariants of all parts; raises AssertionError. Tests call it after every step."""
        self.scheduler.validate()
        state = self.scheduler.state
        for session_id, session in self.sessions.items():
            session.validate()
            waits = session.state is SessionState.QUEUED
            assert (session_id in state.waiting) == (waits and not self._crashes.waits(session_id)), session
            assert (session_id in state.running) != waits, session
            assert all(self.scheduler.is_current(stage.device, stage.generation) for stage in session.chain), session
        scheduled = {s for s in self.sessions if not self._crashes.waits(s)}
        assert set(state.waiting) | set(state.running) == scheduled
        assert {key.node_id for key in state.devices} == set(self.nodes)
        assert all(view.is_draining == (node_id in state.draining) for node_id, view in self.nodes.items())
        self.lateness.validate()
        self.hedging.validate()
        assert self._queue_news.told <= set(state.waiting)
        assert set(self._models) == set(state.models)
