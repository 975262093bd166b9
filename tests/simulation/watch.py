"""The oracle beside the coordinator: every call into the core is followed by checks of what came out of it.

It keeps books of its own (the log of each session, its epoch, its chain, who has opened it) from nothing but the
messages that go in and out, and compares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Set
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
from protocol.values import KV_BLOCK_TOKENS, NodeId, SessionId
from tests.fakes import pool_facts as facts
from tests.simulation.books import Book, SecondChain
from tests.simulation.history import History

ROWS_PER_FRAME = 8192
"""A replay is one prefill: a log goes out in as few frames as the protocol allows, not token by token."""


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

        self.hedging.least_pause_s, self.hedging.catch_up_tokens = 0.0, 3

    # ------------------------------------------------------------ calls

    def judge_in_haste(self, is_hurried: bool, now_s: float) -> list[Effect]:
        """Every session is called slow that may have a second chain; `is_hurried`: its own is as good as gone."""
        return self._checked("haste", now_s, self._hedge_all, is_hurried, now_s)

    def _hedge_all(self, is_hurried: bool, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for session in list(self.sessions.values()):
            effects += self._hedge(session, now_s)
            if session.hedge is not None and session.hedge.keeps and is_hurried:
                effects += self._act(session, session.hurry(), now_s)
        return effects

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
        old_epoch = self.books[order.session_id].newest
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
            if session is None or session.hedge is None:
                book.end_second()
            if session is None or not session.chain:
                book.chain, book.opened = (), {}
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
            if book.second is not None and message.epoch == book.second.epoch and not book.is_over:
                self._hear_second(book, book.second, node_id, message)
                return
            self._counts["stale"] += not is_now
            if isinstance(message, SessionOpened) and is_now and self._is_at(book, message.stage, node_id):
                book.opened[message.stage] = message.num_cached_tokens
                self._note_begin(book, len(book.log))
            if isinstance(message, SessionBroken):
                late = "" if is_now else " (late)"
                said = (facts.number_of(node_id), book.name, message.epoch, message.code, late)
                self._history.note("node %d: %s of epoch %d is broken: %s%s", *said)
                if is_now and self._is_at(book, message.stage, node_id):
                    self._note_break(book, message)

    def _hear_second(
        self, book: Book, second: SecondChain, node_id: NodeId, message: SessionOpened | SessionBroken | TokensSampled
    ) -> None:
        """News of a chain beside the session's own. That it breaks costs the session nothing."""
        if isinstance(message, TokensSampled):
            if second.is_at(len(second.stages) - 1, node_id):
                second.sampled(message, book.log)
        elif second.is_at(message.stage, node_id):
            if isinstance(message, SessionOpened):
                second.opened[message.stage] = message.num_cached_tokens
                self._note_begin(second, second.num_log)
            else:
                said = (facts.number_of(node_id), book.name, message.epoch, message.code)
                self._history.note("node %d: %s's second chain, epoch %d, is broken: %s", *said)

    def _note_begin(self, run: Book | SecondChain, num_log: int) -> None:
        """Once all stages are open: the prompt goes out from where on one of them lacks it, at whole blocks, and not
        further than to its last row. Behind a stage that keeps rows nobody is asked; it gets no row that it has."""
        if len(run.opened) < len(run.chain) or run.next_row:
            return
        least = num_log - 1
        for stage in range(len(run.chain)):
            num_kept = run.opens[stage].num_kept_tokens
            if num_kept:
                least = min(least, num_kept)
                break
            least = min(least, run.opened[stage])
        run.next_row = least // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
        self._counts["cached"] += run.next_row

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
        """Where a request ran of which workers die, it was that one, and speaks against nobody else."""
        ran = [book for book in self.books.values() if book.runs_on(device, generation)]
        for book in [book for book in ran if book.is_deadly] or ran:
            book.crashes.append(device.node_id)
        for book in self.books.values():
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
                    book.chain, book.opened = (), {}
                if book.second is not None and epoch == book.second.epoch:
                    self._history.note("%s: its second chain ends", book.name)
                    book.second = None
                book.forget(node_id)
            case ToNode(node_id, bytes() as data):
                self._check_frame(node_id, data)
            case DropNode(node_id, reason):
                self._check_drop(node_id, reason)

    def _check_news(self, book: Book, item: object) -> None:
        match item:
            case Rerouted(_, chain, epoch):
                numbers = [facts.number_of(stage.device.node_id) for stage in chain]
                self._history.note("%s: epoch %d over nodes %s", book.name, epoch, numbers)
                if book.second is not None and epoch == book.second.epoch:
                    self._check_switch(book, book.second, chain)
                    return
                self._expect(epoch > book.newest, f"{book.name}: epoch {epoch} is not a new one")
                self._counts["take-overs"] += book.second is not None and chain == book.second.chain
                book.end_second()
                self._check_chain(book, chain)
                book.chain, book.opened, book.opens, book.num_frames = chain, {}, {}, 0
                book.epoch = book.newest = epoch
                self._counts["epochs"] += 1
            case Deliver():
                self._check_deliver(book, item)
            case Failed(_, code, _):
                self._history.note("%s: fails with %s", book.name, code)
                book.is_over = True

    def _check_switch(self, book: Book, second: SecondChain, chain: tuple[ChainStage, ...]) -> None:
        """The second chain is the session's own from now on: it has just given the next token."""
        heard = self._cause[1] if isinstance(self._cause, tuple) else None
        is_first = isinstance(heard, TokensSampled) and heard.epoch == second.epoch and not second.is_wrong
        self._expect(is_first and chain == second.chain, f"{book.name}: a second chain wins without the next token")
        book.chain, book.opened, book.opens = chain, second.opened, second.opens
        book.epoch, book.num_frames, book.next_row = second.epoch, second.num_frames, second.next_row
        book.second, book.held = None, {}
        self._counts["hedges won"] += 1

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
        second = None if message.epoch == book.epoch else self._second(book, where, message)
        self._expect(message.num_prompt_tokens == len(book.log), f"{where}: opened for {message.num_prompt_tokens}"
                     f" tokens of a log of {len(book.log)}")  # fmt: skip
        if message.stop is not None:
            self._expect(list(message.history) == book.log, f"{where}: the tail's history is not the log")
        self._expect(node_id not in self.scheduler.state.draining, f"{where}: opened on a node that drains")
        if second is None:
            self._check_kept(book, where, message)
        else:
            self._check_second(book, second, where, node_id, message)

    def _second(self, book: Book, where: str, message: OpenSession) -> SecondChain:
        """The chain beside the session's own that this order belongs to."""
        second = book.second
        if second is None or second.epoch != message.epoch:
            self._expect(message.epoch > book.newest, f"{where}: opened at epoch {message.epoch}, which is not new")
            num_rows = second.num_rows if second is not None else 0
            book.newest, num_log = message.epoch, message.num_prompt_tokens
            second = book.second = SecondChain(message.epoch, num_log, num_rows, position=num_log)
            self._counts["catch-ups" if num_rows else "hedges"] += 1
            self._history.note("%s: a second chain, epoch %d, behind %d rows", book.name, message.epoch, num_rows)
            self._check_share(SessionId(message.session_id))
        return second

    def _check_share(self, session_id: SessionId) -> None:
        """Of sessions that might as well stay where they are, one in ten has a second chain."""
        state = self.scheduler.state
        num_hedges, num_running = len(state.hedges), len(state.running)
        has_to_move = any(key.node_id in state.draining for key in state.running[session_id].devices)
        is_few = num_hedges <= max(1, num_running // 10)
        self._expect(is_few or has_to_move, f"{num_hedges} second chains, {num_running} run")

    def _check_second(self, book: Book, second: SecondChain, where: str, node_id: NodeId, message: OpenSession) -> None:
        """It shares no node with the session's own chain, and keeps what it has for certain."""
        device = DeviceKey(node_id, message.device_id)
        layers = self.scheduler.state.devices[device].layers
        assert layers is not None, "who serves has layers"
        caches = self.scheduler.state.devices[device].has_prefix_cache
        second.stages[message.stage] = ChainStage(device, message.generation, layers, caches)
        own = {stage.device.node_id for stage in book.chain}
        self._expect(node_id not in own, f"{where}: both of the session's chains are on one node")
        num_kept, following = message.num_kept_tokens, second.opens.get(message.stage + 1)
        self._expect(num_kept <= second.num_rows, f"{where}: is to keep {num_kept} rows and has {second.num_rows}")
        self._expect(num_kept < len(book.log), f"{where}: keeps everything, so that nothing comes out of it")
        wanted = following.num_kept_tokens if following is not None else 0
        self._expect(message.next_from == wanted, f"{where}: sends rows from {message.next_from} on, expected {wanted}")
        second.opens[message.stage] = message
        if message.stage == 0:
            second.next_row = num_kept

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
        """The prompt, once every stage behind the head is open; and rows of others, at least some of them current."""
        frame = decode_frame(data)
        own = self._cause != "relayed"
        is_current = any(self._is_current(segment) for segment in frame.segments)
        self._expect(is_current, f"rows of an old epoch are sent on to node {facts.number_of(node_id)}")
        for segment in frame.segments if own else ():
            book = self.books[segment.session_id]
            run = book.run_of(segment.epoch)
            self._expect(frame.kind is FrameKind.TOKENS and run is not None, f"{book.name}: old prompt")
            if run is None:
                continue
            run.num_frames += 1
            is_ready = run.opened.keys() >= set(range(1, len(run.chain)))
            self._expect(is_ready, f"{book.name}: the prompt goes out before the others are open")
            self._expect(segment.position == run.next_row, f"{book.name}: row {segment.position} of the log goes out,"
                         f" expected {run.next_row}")  # fmt: skip
            run.next_row += segment.num_tokens
            self._expect(run.num_frames <= math.ceil(len(book.log) / ROWS_PER_FRAME), f"{book.name}: the log goes out"
                         " token by token")  # fmt: skip
            is_whole = not isinstance(run, SecondChain) or run.next_row <= run.num_log
            self._expect(is_whole, f"{book.name}: a second chain gets more than it was told")

    def _is_current(self, segment: Segment) -> bool:
        book = self.books[segment.session_id]
        return book.run_of(segment.epoch) is not None and not book.is_over

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
