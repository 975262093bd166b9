"""The asyncio shell around the core: nodes' connections in, effects out, answers to whoever waits for them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

import msgspec

from coordinator.answer_times import AnswerTimes
from coordinator.answers import AnswerBook, Item, KeptAnswer, ended
from coordinator.core import HEARTBEAT_S, TICK_S, PoolCore
from coordinator.delivery import Delivery, Forget, News
from coordinator.doorstep import Doorstep
from coordinator.effects import DropNode, Effect, ToNode, ToUser
from coordinator.errors import GenerationFailed, PoolError, RequestRefused
from coordinator.gate import GateFailed, NodeGate
from coordinator.handshake import TRY_AGAIN_LATER, Handshake, Refusal, bad_message, close_reason, refuse
from coordinator.scheduler.state import ModelFacts
from coordinator.sessions import Deliver, Failed, Order
from coordinator.token_log import Accepted, Claim, Kept, TokenLog
from protocol.env import Connection, ConnectionClosed, Env
from protocol.errors import CloseCode, MessageError
from protocol.messages import CoordinatorMessage, Hello, Welcome, decode_node_message, encode_message
from protocol.pause import PoolDefaults
from protocol.values import FinishReason, NodeId
from shell.lanes import Lanes, Stuck, send_or_give_up

log = logging.getLogger(__name__)

SEEN_S = 60.0
"""How often the gate is told who is connected."""
TOKEN_BYTES = 32
LIFE_BITS = 16
"""Of a session's epoch: each coordinator that works on it has 65,536 of its own (frames have 32 bits for them)."""
LEAST_SLEEP_S = 0.01
MAX_CONTROL_BYTES = 32 * 2**20
"""Messages that may wait for one node. A node that falls further behind is dropped: its sessions move elsewhere."""
MAX_RELAY_BYTES = 64 * 2**20
"""Rows that may wait for one node. The sessions of those beyond it move elsewhere."""
MAX_NEWS = 50_000
"""News that may wait to be committed while new requests are taken. What runs adds no more than its answers' lengths."""
BEHIND_S = 5.0


@dataclass(slots=True)
class _NodeLink:
    """`weights_key` is the digest of the token that opens the weight mirror while this connection lasts."""

    connection: Connection
    weights_key: bytes
    outbox: Lanes = field(default_factory=lambda: Lanes(MAX_CONTROL_BYTES, MAX_RELAY_BYTES))


class Hub:
    """Runs one PoolCore. Every call into the core and the sending of its effects is one step of the event loop."""

    def __init__(
        self,
        core: PoolCore,
        token_log: TokenLog,
        env: Env,
        pool_name: str,
        gate: NodeGate,
        defaults: PoolDefaults = PoolDefaults(),
        times: AnswerTimes = AnswerTimes(),
    ) -> None:
        self.core = core
        self._env = env
        self.pool_name = pool_name
        self._gate = gate
        self._handshake = Handshake(env, pool_name, defaults)
        self._doorstep = Doorstep()
        self._num_removals = 0
        self._weights_keys: set[bytes] = set()
        self._left: asyncio.Queue[NodeId] = asyncio.Queue()
        self._links: dict[NodeId, _NodeLink] = {}
        self.answers = AnswerBook(times)
        self._delivery = Delivery(token_log, env, self._hand_out, self._break_off)
        self._closing: set[asyncio.Task[None]] = set()

    def add_model(self, model: ModelFacts, num_replicas: int = 1) -> None:
        """Serve this model too, from now on; so many copies of it come before another model gets more than its own."""
        self._apply(self.core.add_model(model, self._now(), num_replicas))

    def remove_model(self, manifest_hash: str) -> None:
        """Serve it no more: its answers fail with the code model_unloaded, its devices serve the other models."""
        self._apply(self.core.remove_model(manifest_hash, self._now()))

    def drain_node(self, node_id: str, on: bool) -> None:
        """The node finishes what runs on it and gets nothing new; off: it is as good as any other at once."""
        self._apply(self.core.drain_node(NodeId(node_id), on, self._now()))

    def remove_node(self, node_id: str, reason: str) -> None:
        """Close its connection with this sentence; what ran there goes on elsewhere. Whether it may come back is the
        gate's decision, so the accounts are told first."""
        self._num_removals += 1
        self._apply(self.core.remove_node(NodeId(node_id), reason, self._now()))

    def is_weights_token(self, token: str) -> bool:
        """Whether a node that is connected now was given this token.

        What is compared are digests, so that the time it takes says nothing about any token."""
        return _digest(token) in self._weights_keys

    async def run(self) -> None:
        """Tick and deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick())
            tasks.create_task(self._delivery.run())
            tasks.create_task(self._note_connected())
            tasks.create_task(self._note_left())

    async def flush(self) -> None:
        """After `run` has ended: the log hears the last news."""
        await self._delivery.flush()

    # ------------------------------------------------------------ users

    def generate(self, order: Order, claim: Claim = Claim()) -> AsyncGenerator[Item, None]:
        """Run one request. Raises RequestRefused or GenerationFailed; leaving the loop early cancels it, unless the
        claim says that its reader may come back."""
        return self._answer(KeptAnswer(Accepted(order, claim)), is_new=True)

    def read(self, answer: KeptAnswer) -> AsyncGenerator[Item, None]:
        """An answer that runs or is kept, from its beginning; otherwise as `generate`."""
        return self._answer(answer, is_new=False)

    def complete(self, order: Order, finish: FinishReason) -> None:
        """The reader has found the end in the text, such as a string to stop at: no more tokens are needed."""
        answer = self.answers.answers.get(order.session_id)
        self._apply(self.core.cancel(order.session_id, self._now()))
        if answer is not None and not answer.has_ended:
            answer.finish = finish
            self._note_end(answer)

    def cancel(self, answer: KeptAnswer) -> None:
        """Whoever asked wants no more of it, and neither do others who read it."""
        answer.take(Failed(answer.order.session_id, "cancelled", "The answer was ended by whoever asked for it."))
        self._end(answer)

    def restore(self, kept: Iterable[Kept]) -> None:
        """Go on with what a former coordinator left, in its order. The models must be there already.

        Epochs begin anew, above all that nodes may still have of the session."""
        now_s = self._now()
        for one in kept:
            answer = self.answers.restore(one, now_s, self._env.clock.wall())
            if not answer.has_ended:
                epoch = one.num_lives << LIFE_BITS
                self._apply(self.core.restore(answer.order, one.tokens, epoch, now_s))

    async def _answer(self, answer: KeptAnswer, *, is_new: bool) -> AsyncGenerator[Item, None]:
        if is_new and self._delivery.num_waiting > MAX_NEWS:
            raise RequestRefused("overloaded", "The pool's records are behind; try again in a moment.", BEHIND_S)
        reader: asyncio.Queue[Item | Failed] = asyncio.Queue()
        if is_new:
            self.answers.put(answer)
            self._delivery.put(answer.accepted)
        self.answers.attach(answer, reader)
        try:
            if is_new:
                self._apply(self.core.request(answer.order, self._now()))
            while True:
                item = await reader.get()
                if isinstance(item, Failed):
                    raise _error_of(item)
                yield item
                if isinstance(item, Deliver) and item.finish_reason is not None:
                    return
        finally:  # nothing is awaited here: whoever left may have been cancelled, and would be again
            if self.answers.detach(answer, reader, self._now()):
                self._end(answer)

    def _end(self, answer: KeptAnswer) -> None:
        """Nobody will read it any more."""
        session_id = answer.order.session_id
        self.answers.drop(session_id)
        self._apply(self.core.cancel(session_id, self._now()))
        self._delivery.put(Forget(session_id))

    def _hand_out(self, news: News) -> None:
        answer = self.answers.take(news.session_id, news.item, self._now())
        if answer is not None and answer.finish is not None:
            self._note_end(answer)

    def _note_end(self, answer: KeptAnswer) -> None:
        if answer.is_kept:
            self._delivery.put(ended(answer, self._env.clock.wall()))

    def _break_off(self, failed: Failed) -> None:
        """Its tokens cannot be recorded."""
        self._apply(self.core.cancel(failed.session_id, self._now()))
        self.answers.take(failed.session_id, failed, self._now())

    # ------------------------------------------------------------ nodes

    def takes_visitor(self, address: str) -> bool:
        """Whether one more connection from there may begin with serve_node."""
        return self._doorstep.has_room(address, self._now())

    async def serve_node(self, connection: Connection, audience: str = "", address: str = "") -> None:
        """One node's connection, from the challenge to its end. `audience`: the host and port that it was reached by;
        `address`: where it comes from, if that is known."""
        if not self.takes_visitor(address):
            await connection.close(TRY_AGAIN_LATER, "too many connections wait here, try again")
            return
        with self._doorstep.visit(address):
            hello = await self._handshake.run(connection, audience)
            if hello is None or not await self._is_admitted(connection, hello):
                self._doorstep.turned_away(address, self._now())
                return
        node_id, link = NodeId(hello.node_id), self._welcome(connection, hello)
        writer = asyncio.create_task(self._write(node_id, link))
        try:
            await self._read(node_id, link)
        except ConnectionClosed as error:
            log.info("node %s: %s", node_id[:8], in_one_line(str(error)))
        except MessageError as error:
            log.warning("node %s: %s", node_id[:8], error)
            await refuse(connection, bad_message(error))
        finally:
            writer.cancel()
            self._gone(node_id, link)

    async def _is_admitted(self, connection: Connection, hello: Hello) -> bool:
        """Ask the gate, again if a node was removed meanwhile: it could be this one."""
        num_removals = -1
        try:
            while num_removals != self._num_removals:
                num_removals = self._num_removals
                await self._gate.admit(NodeId(hello.node_id), hello.public_key, hello.name, hello.invite)
        except GateFailed as error:
            log.error("node %s could not be let in: %s", hello.node_id[:8], error.code)
            await connection.close(TRY_AGAIN_LATER, close_reason(error.message))
            return False
        except PoolError as error:
            log.info("node %s (%s) refused: %s", hello.node_id[:8], in_one_line(hello.name), error.code)
            await refuse(connection, Refusal(CloseCode.NOT_ALLOWED, error.code, error.message))
            return False
        return True

    def _welcome(self, connection: Connection, hello: Hello) -> _NodeLink:
        """The node is in; its invitation is needed no more and kept nowhere."""
        node_id, token = NodeId(hello.node_id), self._env.random.token_hex(TOKEN_BYTES)
        link = _NodeLink(connection, _digest(token))
        self._drop(node_id, "the node connected again", CloseCode.REPLACED)
        self._links[node_id] = link
        self._weights_keys.add(link.weights_key)
        link.outbox.put_urgent(encode_message(Welcome(hello.protocol_version, self.pool_name, HEARTBEAT_S, token)))
        log.info("node %s (%s) joined with %d device(s)", node_id[:8], in_one_line(hello.name), len(hello.devices))
        self._apply(self.core.node_joined(msgspec.structs.replace(hello, invite=None), self._now()))
        return link

    async def _read(self, node_id: NodeId, link: _NodeLink) -> None:
        while self._links.get(node_id) is link:
            data = await link.connection.recv()
            if self._links.get(node_id) is not link:
                return
            if isinstance(data, bytes):
                self._apply(self.core.node_relayed(node_id, data, self._now()))
            else:
                self._apply(self.core.node_said(node_id, decode_node_message(data), self._now()))

    def _gone(self, node_id: NodeId, link: _NodeLink) -> None:
        if self._links.get(node_id) is link:
            self._unlink(node_id)
            log.info("node %s left", node_id[:8])
            self._apply(self.core.node_lost(node_id, self._now()))

    def _unlink(self, node_id: NodeId) -> _NodeLink | None:
        """This connection is the node's no more, and its token opens nothing."""
        link = self._links.pop(node_id, None)
        if link is not None:
            self._weights_keys.discard(link.weights_key)
            self._left.put_nowait(node_id)
        return link

    async def _note_connected(self) -> None:
        while True:
            await self._env.clock.sleep(SEEN_S)
            await self._note_seen(set(self._links))

    async def _note_left(self) -> None:
        while True:
            await self._note_seen({await self._left.get()})

    async def _note_seen(self, node_ids: set[NodeId]) -> None:
        try:
            await self._gate.note_seen(node_ids)
        except Exception:  # only people read these times: a full disk under the accounts must not end the answers
            log.exception("the times at which nodes were seen could not be written")

    # ------------------------------------------------------------ effects

    def _apply(self, effects: list[Effect]) -> None:
        """Carry effects out in order. What follows from losing a node on the way comes behind the rest: sent earlier,
        a session's close could overtake its open."""
        pending = deque(effects)
        while pending:
            match pending.popleft():
                case ToNode(node_id, data):
                    pending.extend(self._send(node_id, data))
                case ToUser(session_id, item):
                    self._delivery.put(News(session_id, item))
                case DropNode(node_id, reason, code):
                    self._drop(node_id, reason, code)

    def _send(self, node_id: NodeId, data: CoordinatorMessage | bytes) -> list[Effect]:
        link = self._links.get(node_id)
        if link is None:
            return []
        if isinstance(data, bytes):
            return [] if link.outbox.put_bulk(data) else self.core.rows_refused(node_id, data, self._now())
        return [] if link.outbox.put_urgent(encode_message(data)) else self._give_up(node_id)

    def _give_up(self, node_id: NodeId) -> list[Effect]:
        self._drop(node_id, "it does not take its messages", TRY_AGAIN_LATER)
        return self.core.node_lost(node_id, self._now())

    async def _write(self, node_id: NodeId, link: _NodeLink) -> None:
        try:
            while True:
                await send_or_give_up(link.connection.send, await link.outbox.get())
        except ConnectionClosed:  # the reader sees the same and cleans up
            return
        except Stuck:
            if self._links.get(node_id) is link:
                self._apply(self._give_up(node_id))

    def _drop(self, node_id: NodeId, reason: str, code: int) -> None:
        link = self._unlink(node_id)
        if link is not None:
            log.info("node %s dropped: %s", node_id[:8], reason)
            task = asyncio.create_task(link.connection.close(code, close_reason(reason)))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _tick(self) -> None:
        tick_at_s = self._now() + TICK_S
        while True:
            next_s = min(tick_at_s, self.core.next_look_s)
            await self._env.clock.sleep(max(LEAST_SLEEP_S, next_s - self._now()))
            now_s = self._now()
            if now_s < tick_at_s:
                self._apply(self.core.look(now_s))
                continue
            tick_at_s = now_s + TICK_S
            self._apply(self.core.tick(now_s))
            for answer in self.answers.overdue(now_s):
                self._end(answer)

    def _now(self) -> float:
        return self._env.clock.monotonic()


def in_one_line(text: str) -> str:
    """Nodes choose their names and the reasons of their closes: neither may write a line of its own into the log, or
    move the cursor of whoever reads it."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _error_of(failed: Failed) -> PoolError:
    if failed.started:
        return GenerationFailed(failed.code, failed.message)
    return RequestRefused(failed.code, failed.message, failed.retry_after_s)
