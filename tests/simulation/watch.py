"""The oracle beside the coordinator: every call into the core is followed by checks of what came out of it.

It keeps books of its own (the log of each session, its epoch, its chain, who has opened it) from nothing but the
messages that go in and out, and compares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from coordinator.core import LEASE_S, TICK_S, WORKER_DIED, PoolCore
from coordinator.effects import DropNode, Effect, ToNode, ToUser
from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey, DeviceState, ModelFacts, State
from coordinator.sessions import KV_FULL, Deliver, Failed, Order, Rerouted
from coordinator.survivors import HARMLESS_TO_KV, LINK_LOST, NOTHING_KEPT
from protocol.frames import FrameKind, Segment, decode_frame
from protocol.messages import (
    CloseSession,
    DeviceFailed,
    Heartbeat,
    Hello,
    NodeMessage,
    OpenSession,
    SessionBroken,
    SessionOpened,
    TokensSampled,
)
from protocol.values import NodeId, SessionId
from tests.fakes import pool_facts as facts
from tests.simulation.history import History

MAX_BREAKS = 4
MAX_CRASHED_NODES, MAX_CRASHES = 2, 3
ROWS_PER_FRAME = 8192
"""A replay is one prefill: a log goes out in as few frames as the protocol allows, not token by token."""


@dataclass
class Book:
    """What must be true of one session, from what was said about it."""

    order: Order
    log: list[int]
    epoch: int = 0
    chain: tuple[ChainStage, ...] = ()
    opened: set[int] = field(default_factory=set)
    num_frames: int = 0
    is_over: bool = False
    avoid: set[DeviceKey] = field(default_factory=set)
    breaks: list[str] = field(default_factory=list)
    """What stages of its chains have said since its last token."""
    crashes: list[NodeId] = field(default_factory=list)
    """Nodes whose workers have died under it since its last token."""
    held: dict[ChainStage, int] = field(default_factory=dict)
    """How many rows each stage that was not told to forget it has computed for certain."""
    opens: dict[int, OpenSession] = field(default_factory=dict)
    """Of this epoch, by stage."""
    next_row: int = 0
    """Of the log, for the head."""

    @property
    def given_up_for(self) -> str:
        """What was said last, if it was said often enough for the request to be given up."""
        return self.breaks[-1] if len(self.breaks) >= MAX_BREAKS else ""

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its workers died of."""
        return len(set(self.crashes)) >= MAX_CRASHED_NODES or len(self.crashes) >= MAX_CRASHES

    def forget(self, node_id: NodeId) -> None:
        """That node has only what the chain of now has there."""
        self.held = {s: num for s, num in self.held.items() if s.device.node_id != node_id or s in self.chain}

    @property
    def name(self) -> str:
        return f"session {int(self.order.session_id, 16)}"


class WatchedCore(PoolCore):
    """A PoolCore that is checked after every call. `may_be_silent(node)`: whether the world has silenced it."""

    def __init__(self, history: History, books: dict[SessionId, Book], may_be_silent: Callable[[NodeId], bool]) -> None:
        super().__init__()
        self.books = books
        self.is_dead = False
        """Its process was killed: whatever still calls it is not heard."""
        self._counts: Counter[str] = Counter()
        self._history = history
        self._may_be_silent = may_be_silent
        self._heard_s: dict[NodeId, float] = {}
        self._stalled_until_s = -math.inf
        self._ticked_s: float | None = None
        self._depth = 0
        self._cause: object = None

    # ------------------------------------------------------------ calls

    def node_joined(self, hello: Hello, now_s: float) -> list[Effect]:
        self._heard_s[NodeId(hello.node_id)] = now_s
        self._ticked_s = now_s if self._ticked_s is None else self._ticked_s
        self._note("joins", NodeId(hello.node_id))
        return self._checked(hello, now_s, super().node_joined, hello, now_s)

    def node_lost(self, node_id: NodeId, now_s: float) -> list[Effect]:
        if node_id in self.nodes and not self.is_dead:
            self._note("is lost", node_id)
        return self._checked("lost", now_s, super().node_lost, node_id, now_s)

    def node_said(self, node_id: NodeId, message: NodeMessage, now_s: float) -> list[Effect]:
        self._heard_s[node_id] = now_s
        self._hear(node_id, message)
        return self._checked((node_id, message), now_s, super().node_said, node_id, message, now_s)

    def node_relayed(self, node_id: NodeId, data: bytes, now_s: float) -> list[Effect]:
        self._heard_s[node_id] = now_s
        return self._checked("relayed", now_s, super().node_relayed, node_id, data, now_s)

    def request(self, order: Order, now_s: float) -> list[Effect]:
        self.books[order.session_id] = Book(order, list(order.prompt))
        return self._checked("request", now_s, super().request, order, now_s)

    def restore(self, order: Order, tokens: tuple[int, ...], epoch: int, now_s: float) -> list[Effect]:
        old_epoch = self.books[order.session_id].epoch
        self._expect(epoch > old_epoch, f"session {int(order.session_id, 16)}: epochs begin again at {epoch}")
        self.books[order.session_id] = Book(order, [*order.prompt, *tokens], epoch)
        return self._checked("restore", now_s, super().restore, order, tokens, epoch, now_s)

    def rows_refused(self, node_id: NodeId, data: bytes, now_s: float) -> list[Effect]:
        return self._checked("refused", now_s, super().rows_refused, node_id, data, now_s)

    def look(self, now_s: float) -> list[Effect]:
        return self._checked("look", now_s, super().look, now_s)

    def cancel(self, session_id: SessionId, now_s: float) -> list[Effect]:
        self.books[session_id].is_over |= not self.is_dead
        return self._checked("cancel", now_s, super().cancel, session_id, now_s)

    def drain_node(self, node_id: str, on: bool, now_s: float) -> list[Effect]:
        return self._checked("drain", now_s, super().drain_node, NodeId(node_id), on, now_s)

    def remove_node(self, node_id: NodeId, reason: str, now_s: float) -> list[Effect]:
        return self._checked("remove", now_s, super().remove_node, node_id, reason, now_s)

    def tick(self, now_s: float) -> list[Effect]:
        lag_s = 0.0 if self._ticked_s is None else now_s - self._ticked_s - TICK_S
        self._ticked_s = now_s
        if lag_s > TICK_S:
            self._stalled_until_s = now_s
        effects = self._checked("tick", now_s, super().tick, now_s)
        self._check_leases(now_s)
        return effects

    def _checked(self, cause: object, now_s: float, call: Callable[..., list[Effect]], *args: Any) -> list[Effect]:
        """Calls that the core makes itself on the way are part of the outer one."""
        if self.is_dead:
            return []
        self._depth += 1
        try:
            effects = call(*args)
        finally:
            self._depth -= 1
        if self._depth == 0:
            self._cause = cause
            for effect in effects:
                self._check(effect)
            self._note_lost_chains()
            self._validate()
        return effects

    def _note_lost_chains(self) -> None:
        """A chain that is lost is not always closed at once: its stages may keep KV for the next one."""
        for session_id, book in self.books.items():
            session = self.sessions.get(session_id)
            if session is None or not session.chain:
                book.chain, book.opened = (), set()
            for node_id in {stage.device.node_id for stage in book.held} - self.nodes.keys():
                book.forget(node_id)

    def _validate(self) -> None:
        try:
            self.validate()
        except AssertionError as error:
            self._history.blame(f"an invariant of the core does not hold: {str(error)[:300]}")

    # ------------------------------------------------------------ what goes in

    def _hear(self, node_id: NodeId, message: NodeMessage) -> None:
        if isinstance(message, Heartbeat):
            return
        if isinstance(message, DeviceFailed) and message.code == WORKER_DIED:
            self._note_crash(DeviceKey(node_id, message.device_id), message.generation)
        if isinstance(message, SessionOpened | SessionBroken | TokensSampled):
            book = self.books.get(SessionId(message.session_id))
            if book is None:
                return
            is_now = message.epoch == book.epoch and not book.is_over
            self._counts["stale"] += not is_now
            if isinstance(message, SessionOpened) and is_now and self._is_at(book, message.stage, node_id):
                book.opened.add(message.stage)
            if isinstance(message, SessionBroken):
                late = "" if is_now else " (late)"
                said = (facts.number_of(node_id), book.name, message.epoch, message.code, late)
                self._history.note("node %d: %s of epoch %d is broken: %s%s", *said)
                if is_now and self._is_at(book, message.stage, node_id):
                    self._note_break(book, message)

    def _note_break(self, book: Book, message: SessionBroken) -> None:
        """Of a lost link the far end is to be avoided. A stage that has nothing left of what it should have kept is
        only to compute it again; a full one says nothing about the answer."""
        self._counts["breaks"] += 1
        if message.code == NOTHING_KEPT:
            for stage in book.chain[: message.stage + 1]:
                book.held.pop(stage, None)
            return
        if message.code not in HARMLESS_TO_KV:
            book.held.pop(book.chain[message.stage], None)
        culprit = (message.stage + (message.code == LINK_LOST)) % len(book.chain)
        book.avoid.add(book.chain[culprit].device)
        if message.code != KV_FULL:
            book.breaks.append(message.code)

    def _note_crash(self, device: DeviceKey, generation: int) -> None:
        for book in self.books.values():
            is_running = bool(book.chain) and len(book.opened) == len(book.chain) and not book.is_over
            if is_running and any((s.device, s.generation) == (device, generation) for s in book.chain):
                book.crashes.append(device.node_id)
            book.held = {s: num for s, num in book.held.items() if s.device != device}

    @staticmethod
    def _is_at(book: Book, stage: int, node_id: NodeId) -> bool:
        return stage < len(book.chain) and book.chain[stage].device.node_id == node_id

    # ------------------------------------------------------------ what comes out

    def _check(self, effect: Effect) -> None:
        match effect:
            case ToUser(session_id, item):
                self._check_news(self.books[session_id], item)
            case ToNode(node_id, OpenSession() as message):
                self._check_open(self.books[SessionId(message.session_id)], node_id, message)
            case ToNode(node_id, CloseSession(session_id=session_id, epoch=epoch)):
                book = self.books[SessionId(session_id)]
                if epoch == book.epoch:
                    book.chain, book.opened = (), set()
                book.forget(node_id)
            case ToNode(node_id, bytes() as data):
                self._check_frame(node_id, data)
            case DropNode(node_id, reason):
                self._check_drop(node_id, reason)

    def _check_news(self, book: Book, item: object) -> None:
        match item:
            case Rerouted(_, chain):
                self._check_chain(book, chain)
                book.chain, book.opened, book.opens, book.num_frames = chain, set(), {}, 0
                book.epoch += 1
                self._counts["epochs"] += 1
                numbers = [facts.number_of(stage.device.node_id) for stage in chain]
                self._history.note("%s: epoch %d over nodes %s", book.name, book.epoch, numbers)
            case Deliver():
                self._check_deliver(book, item)
            case Failed(_, code, _):
                self._history.note("%s: fails with %s", book.name, code)
                book.is_over = True

    def _check_deliver(self, book: Book, item: Deliver) -> None:
        heard = self._cause[1] if isinstance(self._cause, tuple) else None
        self._history.note("%s: token %s at %d%s", book.name, item.tokens, item.position,
                           f", {item.finish_reason}" if item.finish_reason else "")  # fmt: skip
        is_current = isinstance(heard, TokensSampled) and heard.epoch == book.epoch and not book.is_over
        self._expect(is_current, f"{book.name}: a token of an old epoch was accepted")
        self._expect(item.position == len(book.log), f"{book.name}: a token for position {item.position} was accepted,"
                     f" expected {len(book.log)}")  # fmt: skip
        book.log += item.tokens
        book.breaks.clear()
        book.crashes.clear()
        if not item.finish_reason:
            book.held = dict.fromkeys(book.chain, item.position)
        book.is_over = item.finish_reason is not None

    def _check_chain(self, book: Book, chain: tuple[ChainStage, ...]) -> None:
        """Away from where it broke, if there is a way around: with KV room, or the pool would rather wait."""
        own = {stage.device for stage in chain}
        used = own & book.avoid
        if used and self._covers(book, own, book.avoid | self.sessions[book.order.session_id].avoid):
            names = [f"node {facts.number_of(key.node_id)}" for key in sorted(used)]
            self._history.blame(f"{book.name}: goes over {names} again, where it broke, though there is a way around")

    def _covers(self, book: Book, own: set[DeviceKey], avoid: set[DeviceKey]) -> bool:
        """Whether ready devices that are not to be avoided, with room, hold every layer in slices that fit."""
        state, num_tokens = self.scheduler.state, book.order.num_tokens
        full = {
            key for key, device in state.devices.items()
            if device.num_reserved_tokens + num_tokens * (key not in own) > device.num_kv_tokens
        }  # fmt: skip
        return covers(state, state.models[book.order.manifest_hash], avoid | full)

    def covers_without(self, node_id: NodeId) -> bool:
        """Whether ready devices of other nodes hold every layer of every model."""
        state = self.scheduler.state
        own = frozenset(key for key in state.devices if key.node_id == node_id)
        return all(covers(state, model, own) for model in state.models.values())

    def _check_open(self, book: Book, node_id: NodeId, message: OpenSession) -> None:
        where = f"{book.name}, stage {message.stage}"
        self._expect(message.epoch == book.epoch, f"{where}: opened at epoch {message.epoch}, which is not a new one")
        self._expect(message.num_prompt_tokens == len(book.log), f"{where}: opened for {message.num_prompt_tokens}"
                     f" tokens of a log of {len(book.log)}")  # fmt: skip
        if message.stop is not None:
            self._expect(list(message.history) == book.log, f"{where}: the tail's history is not the log")
        self._expect(node_id not in self.scheduler.state.draining, f"{where}: opened on a node that drains")
        self._check_kept(book, where, message)

    def _check_kept(self, book: Book, where: str, message: OpenSession) -> None:
        """A stage keeps what it has for certain, and is sent what it lacks: by the stage before it, or by us."""
        place, num_kept = book.chain[message.stage], message.num_kept_tokens
        held = book.held.get(place, 0)
        self._expect(num_kept <= held, f"{where}: is to keep {num_kept} rows and has {held}")
        self._expect(num_kept < len(book.log), f"{where}: keeps everything, so that nothing comes out of it")
        following = book.opens.get(message.stage + 1)
        wanted = following.num_kept_tokens if following is not None else 0
        self._expect(message.next_from == wanted, f"{where}: sends rows from {message.next_from} on, expected {wanted}")
        book.opens[message.stage], book.held[place] = message, num_kept
        self._counts["kept"] += num_kept
        if message.stage == 0:
            book.next_row = num_kept

    def _check_frame(self, node_id: NodeId, data: bytes) -> None:
        """The prompt, once every stage is open; and rows of others, of which at least some must be current."""
        frame = decode_frame(data)
        own = self._cause != "relayed"
        is_current = any(self._is_current(segment) for segment in frame.segments)
        self._expect(is_current, f"rows of an old epoch are sent on to node {facts.number_of(node_id)}")
        for segment in frame.segments if own else ():
            book = self.books[segment.session_id]
            book.num_frames += 1
            self._expect(frame.kind is FrameKind.TOKENS and segment.epoch == book.epoch, f"{book.name}: old prompt")
            self._expect(len(book.opened) == len(book.chain), f"{book.name}: the prompt goes out before all are open")
            self._expect(segment.position == book.next_row, f"{book.name}: row {segment.position} of the log goes out,"
                         f" expected {book.next_row}")  # fmt: skip
            book.next_row += segment.num_tokens
            self._expect(book.num_frames <= math.ceil(len(book.log) / ROWS_PER_FRAME), f"{book.name}: the log goes out"
                         " token by token")  # fmt: skip

    def _is_current(self, segment: Segment) -> bool:
        book = self.books[segment.session_id]
        return segment.epoch == book.epoch and bool(book.chain) and not book.is_over

    def _check_drop(self, node_id: NodeId, reason: str) -> None:
        self._history.note("node %d: dropped, %s", facts.number_of(node_id), reason)
        if reason.startswith("silent"):
            self._expect(self._may_be_silent(node_id), f"node {facts.number_of(node_id)} was dropped and is healthy")

    def _check_leases(self, now_s: float) -> None:
        for node_id in self.nodes:
            silent_s = now_s - max(self._heard_s[node_id], self._stalled_until_s)
            self._expect(silent_s <= LEASE_S + 2 * TICK_S, f"node {facts.number_of(node_id)} is kept, silent for"
                         f" {silent_s:.1f} s")  # fmt: skip

    def _note(self, what: str, node_id: NodeId) -> None:
        self._history.note("node %d: %s", facts.number_of(node_id), what)

    def _expect(self, is_so: bool, sentence: str) -> None:
        if not is_so:
            self._history.blame(sentence)

    def counts(self) -> Counter[str]:
        """How much happened: to see that a history was worth its while."""
        return self._counts


def covers(state: State, model: ModelFacts, avoid: Set[DeviceKey]) -> bool:
    """Whether ready devices that are not to be avoided hold every layer in slices that fit."""
    at = {0}
    slices = [
        (device.layers.start, device.layers.stop)
        for key, device in state.devices.items()
        if device.state is DeviceState.READY and device.layers is not None and key not in avoid
        and key.node_id not in state.draining and key not in state.retiring
    ]  # fmt: skip
    for start, stop in sorted(slices):
        if start in at:
            at.add(stop)
    return model.num_layers in at
