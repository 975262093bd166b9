"""The pool as one pure object: scheduler and sessions tied together. Calls in, effects out; time is an argument.

The hub (asyncio) calls it and carries the effects out in order. Everything that decides anything is here or below, so
that a whole pool runs on virtual time in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coordinator.nodes import DeviceView, NodeView
from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.state import DeviceKey, ModelFacts
from coordinator.sessions import (
    Action,
    Contact,
    Deliver,
    Failed,
    NeedChain,
    Order,
    Queued,
    Rerouted,
    SendFrame,
    SendMessage,
    Session,
    SessionState,
)
from protocol.errors import CloseCode, FrameError, FrameFault, MessageError, MessageFault
from protocol.frames import Frame, decode_frame
from protocol.messages import (
    AssignSlice,
    CoordinatorMessage,
    DeviceFailed,
    DeviceMeasured,
    Heartbeat,
    Hello,
    Leaving,
    MeasureDevice,
    NodeMessage,
    ReleaseSlice,
    SessionBroken,
    SessionOpened,
    SliceProgress,
    SliceReady,
    TokensSampled,
)
from protocol.values import DeviceId, NodeId, SessionId

LEASE_S = 4.0
"""A node that says nothing for this long is lost; it sends a heartbeat every HEARTBEAT_S. With a tick on top, a dead
machine is out of the view and out of all chains within 5 s."""
HEARTBEAT_S = 1.0
TICK_S = 0.5
QUEUE_NEWS_S = 1.0
"""Who waits hears of a new place at most this often."""
MAX_FAULTS = 100


@dataclass(frozen=True, slots=True)
class ToNode:
    """Send this to the node: a control message or a data frame."""

    node_id: NodeId
    data: CoordinatorMessage | bytes


@dataclass(frozen=True, slots=True)
class ToUser:
    """News for the consumer of a session; Deliver must be committed to the token log before it is passed on."""

    session_id: SessionId
    item: Queued | Deliver | Rerouted | Failed


@dataclass(frozen=True, slots=True)
class DropNode:
    """Close this node's connection; the core has forgotten it already."""

    node_id: NodeId
    reason: str
    code: int = 1000


Effect = ToNode | ToUser | DropNode


class PoolCore:
    """All decisions of one pool."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.nodes: dict[NodeId, NodeView] = {}
        self.sessions: dict[SessionId, Session] = {}
        self._models: dict[str, ModelFacts] = {}
        self._told_queued: dict[SessionId, tuple[Queued, float]] = {}
        """What those who wait for their first chain were told last, and when."""
        self._last_tick_s: float | None = None
        self._message_handlers: dict[type, Callable[[NodeId, Any, float], list[Effect]]] = {
            DeviceMeasured: self._device_measured,
            DeviceFailed: self._device_failed,
            SliceProgress: self._slice_progress,
            SliceReady: self._slice_ready,
            SessionOpened: self._session_opened,
            SessionBroken: self._session_broken,
            TokensSampled: self._tokens_sampled,
            Heartbeat: self._heartbeat,
            Leaving: self._leaving,
        }

    # ------------------------------------------------------------ calls

    def add_model(self, model: ModelFacts, now_s: float) -> list[Effect]:
        self._models[model.manifest_hash] = model
        return self._schedule(ev.ModelAdded(model), now_s)

    def remove_model(self, manifest_hash: str, now_s: float) -> list[Effect]:
        """Serve it no more: its answers fail with `model_unloaded`. Harmless for a model that is not served."""
        for view in self.nodes.values():
            view.drop_measuring(manifest_hash)
        effects = self._schedule(ev.ModelRemoved(manifest_hash), now_s)
        self._models.pop(manifest_hash, None)
        return effects

    def drain_node(self, node_id: NodeId, on: bool, now_s: float) -> list[Effect]:
        """Nothing new for this node, or all of it again. It is remembered for a node that is not connected now."""
        if node_id in self.nodes:
            self.nodes[node_id].is_draining = on
        return self._schedule(ev.NodeDraining(node_id, on), now_s)

    def remove_node(self, node_id: NodeId, reason: str, now_s: float) -> list[Effect]:
        """The operator does not want it here. Harmless for a node that is not connected."""
        if node_id not in self.nodes:
            return []
        return [*self.node_lost(node_id, now_s), DropNode(node_id, reason, CloseCode.NOT_ALLOWED)]

    def node_joined(self, hello: Hello, now_s: float) -> list[Effect]:
        """A node said hello. An older connection of the same node counts as lost."""
        node_id = NodeId(hello.node_id)
        effects = self.node_lost(node_id, now_s) if node_id in self.nodes else []
        self.nodes[node_id] = NodeView(hello, now_s, is_draining=node_id in self.scheduler.state.draining)
        return [*effects, *self._schedule(ev.NodeJoined(node_id, hello.devices, hello.held), now_s)]

    def node_lost(self, node_id: NodeId, now_s: float) -> list[Effect]:
        """The node is gone, with or without a word: its sessions move before anything else is planned."""
        view = self.nodes.pop(node_id, None)
        if view is None:
            return []
        lost = {DeviceKey(node_id, device_id) for device_id in view.devices}
        effects = self._schedule(ev.NodeLeft(node_id), now_s)
        return [*effects, *self._move_sessions(lost, now_s)]

    def node_said(self, node_id: NodeId, message: NodeMessage, now_s: float) -> list[Effect]:
        """A control message of a node that has joined. Raises MessageError for one that does not belong here."""
        if isinstance(message, Hello):
            raise MessageError(MessageFault.UNEXPECTED, "a second hello on one connection")
        self.nodes[node_id].heard_at_s = now_s
        return self._message_handlers[type(message)](node_id, message, now_s)

    def node_relayed(self, node_id: NodeId, data: bytes, now_s: float) -> list[Effect]:
        """A data frame for another node that the sender cannot reach directly."""
        self.nodes[node_id].heard_at_s = now_s
        try:
            target = self._relay_target(node_id, decode_frame(data))
        except FrameError:
            return self._fault(node_id, now_s)
        return [ToNode(target, data)] if target is not None else []

    def request(self, order: Order, now_s: float) -> list[Effect]:
        """A user wants an answer. What this session's user hears first is Queued, Rerouted or Failed."""
        self.sessions[order.session_id] = Session(order)
        effects = self._schedule(ev.RequestArrived(order.session_id, order.manifest_hash, order.num_tokens), now_s)
        place = self.queue_place(order.session_id)
        return [*effects, self._tell_queued(order.session_id, place, now_s)] if place else effects

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
        silent = [n for n, view in self.nodes.items() if now_s - view.heard_at_s > LEASE_S]
        effects: list[Effect] = []
        for node_id in silent:
            effects += [*self.node_lost(node_id, now_s), DropNode(node_id, f"silent for {LEASE_S:.0f} s")]
        return [*effects, *self._schedule(ev.TimePassed(), now_s), *self._queue_news(now_s)]

    # ------------------------------------------------------------ what nodes say

    def _device_measured(self, node_id: NodeId, message: DeviceMeasured, now_s: float) -> list[Effect]:
        view = self._current_view(node_id, message.device_id, 0)
        if view is None or view.manifest_hash != message.manifest_hash:
            return []
        view.idle()
        device = DeviceKey(node_id, message.device_id)
        return self._schedule(ev.DeviceMeasured(device, message.manifest_hash, message.benchmark), now_s)

    def _device_failed(self, node_id: NodeId, message: DeviceFailed, now_s: float) -> list[Effect]:
        view = self._current_view(node_id, message.device_id, message.generation)
        if view is None or view.manifest_hash != message.manifest_hash:
            return []
        view.fail(message.message)
        device = DeviceKey(node_id, message.device_id)
        effects = self._schedule(ev.DeviceFailed(device, message.generation), now_s)
        return [*effects, *self._move_sessions({device}, now_s)]

    def _slice_progress(self, node_id: NodeId, message: SliceProgress, now_s: float) -> list[Effect]:
        view = self._current_view(node_id, message.device_id, message.generation)
        if view is not None:
            view.progress(message)
        return []

    def _slice_ready(self, node_id: NodeId, message: SliceReady, now_s: float) -> list[Effect]:
        view = self._current_view(node_id, message.device_id, message.generation)
        if view is None:
            return []
        view.serve()
        device = DeviceKey(node_id, message.device_id)
        return self._schedule(ev.SliceReady(device, message.generation, message.num_kv_tokens), now_s)

    def _session_opened(self, node_id: NodeId, message: SessionOpened, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        return self._act(session, session.stage_opened(node_id, message.epoch, message.stage), now_s) if session else []

    def _session_broken(self, node_id: NodeId, message: SessionBroken, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        if session is None:
            return []
        actions = session.broken(node_id, message.epoch, message.stage, message.code, message.message)
        return self._act(session, actions, now_s)

    def _tokens_sampled(self, node_id: NodeId, message: TokensSampled, now_s: float) -> list[Effect]:
        session = self.sessions.get(SessionId(message.session_id))
        return self._act(session, session.sampled(node_id, message), now_s) if session else []

    def _heartbeat(self, node_id: NodeId, message: Heartbeat, now_s: float) -> list[Effect]:
        self.nodes[node_id].beat(message, now_s)
        return []

    def _leaving(self, node_id: NodeId, message: Leaving, now_s: float) -> list[Effect]:
        return [*self.node_lost(node_id, now_s), DropNode(node_id, "left")]

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
                return self._act(session, session.start(chain, self._contacts(chain)), now_s)
            case cmd.RefuseRequest(session_id, code, message, retry_after_s):
                session = self.sessions[session_id]
                return self._act(session, session.fail(code, message, retry_after_s), now_s)
            case cmd.Measure():
                return [self._measure(command)]
            case cmd.Assign():
                return [self._assign(command)]
            case cmd.Release(device, generation):
                self.nodes[device.node_id].devices[device.device_id].idle()
                return [ToNode(device.node_id, ReleaseSlice(device.device_id, generation))]

    def _measure(self, command: cmd.Measure) -> Effect:
        device = command.device
        self.nodes[device.node_id].devices[device.device_id].measure(command)
        return ToNode(device.node_id, MeasureDevice(device.device_id, command.manifest_hash, command.variant))

    def _assign(self, command: cmd.Assign) -> Effect:
        device, model = command.device, self._models[command.manifest_hash]
        self.nodes[device.node_id].devices[device.device_id].assign(command)
        message = AssignSlice(
            device.device_id,
            command.generation,
            model.name,
            command.manifest_hash,
            command.variant,
            command.layers,
            model.num_layers,
        )
        return ToNode(device.node_id, message)

    def _act(self, session: Session, actions: list[Action], now_s: float) -> list[Effect]:
        """Turn a session's actions into effects; ask the scheduler where one of them needs it."""
        effects: list[Effect] = []
        for action in actions:
            match action:
                case SendMessage(node_id, message):
                    effects.append(ToNode(node_id, message))
                case SendFrame(node_id, frame):
                    effects.append(ToNode(node_id, frame))
                case NeedChain(_, avoid):
                    effects += self._reroute(session.order, avoid, now_s)
                case Deliver() | Rerouted() | Failed():
                    effects.append(ToUser(session.order.session_id, action))
        session_id = session.order.session_id
        if session.state is not SessionState.QUEUED:
            self._told_queued.pop(session_id, None)
        if session.state is SessionState.ENDED and session_id in self.sessions:
            del self.sessions[session_id]
            effects += self._schedule(ev.RequestFinished(session_id), now_s)
        return effects

    def _reroute(self, order: Order, avoid: frozenset[DeviceKey], now_s: float) -> list[Effect]:
        event = ev.RequestArrived(order.session_id, order.manifest_hash, order.num_tokens, resumed=True, avoid=avoid)
        return self._schedule(event, now_s)

    def _queue_news(self, now_s: float) -> list[Effect]:
        """For those who wait for their first chain and whose place is another one than they were told."""
        if not self._told_queued:
            return []
        places = self.scheduler.queue_places()
        return [
            self._tell_queued(session_id, places[session_id], now_s)
            for session_id, (told, at_s) in self._told_queued.items()
            if _is_news(places[session_id], told) and now_s - at_s >= QUEUE_NEWS_S
        ]

    def _tell_queued(self, session_id: SessionId, place: QueuePlace, now_s: float) -> Effect:
        queued = Queued(place.place, place.num_waiting, place.expected_wait_s)
        self._told_queued[session_id] = (queued, now_s)
        return ToUser(session_id, queued)

    def _move_sessions(self, lost: set[DeviceKey], now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for session in list(self.sessions.values()):
            effects += self._act(session, session.devices_lost(lost), now_s)
        return effects

    def _contacts(self, chain: tuple[cmd.ChainStage, ...]) -> dict[NodeId, Contact]:
        hellos = {node_id: self.nodes[node_id].hello for node_id in {stage.device.node_id for stage in chain}}
        return {
            node_id: Contact(hello.peer_address, hello.peer_ticket, hello.peer_fingerprint)
            for node_id, hello in hellos.items()
        }

    def _relay_target(self, sender: NodeId, frame: Frame) -> NodeId | None:
        """The one node that all rows of a batch are for; None if all of them are late.

        Late rows beside current ones travel on: the receiver drops them, the others must not be lost with them."""
        targets: set[NodeId | None] = set()
        for segment in frame.segments:
            session = self.sessions.get(segment.session_id)
            if session is not None and session.is_current(segment.epoch):
                targets.add(session.relay_target(sender, segment))
        if None in targets or len(targets) > 1:
            raise FrameError(FrameFault.SENDER, "rows for a stage that is not the sender's neighbour")
        return targets.pop() if targets else None

    def _fault(self, node_id: NodeId, now_s: float) -> list[Effect]:
        self.nodes[node_id].num_faults += 1
        if self.nodes[node_id].num_faults < MAX_FAULTS:
            return []
        return [
            *self.node_lost(node_id, now_s),
            DropNode(node_id, f"{MAX_FAULTS} bad frames", CloseCode.TOO_MANY_FAULTS),
        ]

    def _current_view(self, node_id: NodeId, device_id: DeviceId, generation: int) -> DeviceView | None:
        """The device, if this news is about what it does now: answers to older orders are dropped."""
        if not self.scheduler.is_current(DeviceKey(node_id, device_id), generation):
            return None
        return self.nodes[node_id].devices[device_id]

    def _forgive_stall(self, now_s: float) -> None:
        """A coordinator that was itself stopped must not judge others by the time it missed.

        What was read since it woke was heard now; nobody is heard in the future."""
        lag_s = now_s - self._last_tick_s - TICK_S if self._last_tick_s is not None else 0.0
        self._last_tick_s = now_s
        if lag_s > TICK_S:
            for view in self.nodes.values():
                view.heard_at_s = min(now_s, view.heard_at_s + lag_s)

    def validate(self) -> None:
        """Re-derive the invariants of all parts; raises AssertionError. Tests call it after every step."""
        self.scheduler.validate()
        state = self.scheduler.state
        for session_id, session in self.sessions.items():
            session.validate()
            waits = session.state is SessionState.QUEUED
            assert (session_id in state.waiting) == waits, session
            assert (session_id in state.running) != waits, session
        assert set(state.waiting) | set(state.running) == set(self.sessions)
        assert {key.node_id for key in state.devices} == set(self.nodes)
        assert all(view.is_draining == (node_id in state.draining) for node_id, view in self.nodes.items())
        assert set(self._told_queued) <= set(state.waiting)
        assert set(self._models) == set(state.models)


def _is_news(place: QueuePlace, told: Queued) -> bool:
    """Another place, or the first idea of how long it will take."""
    return place.place != told.place or (told.expected_wait_s is None and place.expected_wait_s is not None)
