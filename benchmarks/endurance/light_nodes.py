"""Simulated nodes: the real protocol over real connections, without workers. They come back as real agents do."""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.endurance.light_socket import LightSocket
from client.agent.contribution import MAX_RECONNECT_S, MAX_SOON_S, RECONNECT_BASE_S, SOON_S
from client.agent.identity import Identity
from protocol import PROTOCOL_VERSION
from protocol import messages as m
from protocol.backoff import doubled_s
from protocol.frames import decode_frame
from protocol.values import (
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    FinishReason,
    HeldSlice,
    LayerBenchmark,
    LinkTime,
    StepTiming,
    Variant,
)

CPU = DeviceId("cpu")
GIB = 2**30
BENCHMARK = LayerBenchmark((BatchTime(1, 1e-4), BatchTime(64, 2e-4)), 1e-6, 1e-5)
"""Of something fast: it is the coordinator that is measured."""
NUM_KV_TOKENS = 400_000
RTT_S = 0.001


def source_of(number: int) -> str:
    """Each node has an address of its own, as volunteers have: all of 127.0.0.0/8 is this machine."""
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


def first_digest(prompt: Sequence[int]) -> bytes:
    return hashlib.blake2b(struct.pack(f"<{len(prompt)}i", *prompt), digest_size=8).digest()


def next_token(digest: bytes) -> tuple[int, bytes]:
    """The token behind everything that is in the digest, and the digest with it."""
    token = int.from_bytes(digest, "little") % 997 + 3
    return token, hashlib.blake2b(digest + struct.pack("<i", token), digest_size=8).digest()


@dataclass
class Playing:
    """One session at its tail: a token every `interval_s`."""

    order: m.OpenSession
    digest: bytes
    position: int


@dataclass
class Stage:
    """What all simulated nodes know of sessions: rows between them take no way. `sent_at_s`: when the tail said a
    token, by prompt."""

    interval_s: float = 0.2
    tails: dict[str, LightNode] = field(default_factory=dict)
    sent_at_s: dict[tuple[int, ...], list[float]] = field(default_factory=dict)


@dataclass(eq=False)
class LightNode:
    """One node. `port`: the coordinator's."""

    number: int
    port: int
    stage: Stage
    max_layers: int | None = None
    on_welcome: Callable[[LightNode], None] = lambda _: None
    num_welcomes: int = 0
    num_losses: int = 0
    num_tries: int = 0
    num_refused: int = 0
    late_s: list[float] = field(default_factory=list)
    """By how much heartbeats were sent late, the player's own fault."""
    codes: list[str] = field(default_factory=list)
    held: dict[str, HeldSlice] = field(default_factory=dict)
    num_loads: int = 0
    socket: LightSocket | None = None
    _sessions: dict[str, Playing] = field(default_factory=dict)
    _beat_s: float = 1.0
    _beating: asyncio.TimerHandle | None = None
    _closed: asyncio.Event = field(default_factory=asyncio.Event)
    _lost_at_s: float = float("-inf")

    def __post_init__(self) -> None:
        self._draw = random.Random(self.number)
        self.identity = Identity.of(self._draw.randbytes(32))

    async def live(self, first_s: float = 0.0) -> None:
        """Join after so long and stay until cancelled."""
        await asyncio.sleep(first_s)
        num_failures = 0
        while True:
            self._closed.clear()
            self.num_tries += 1
            num_welcomes = self.num_welcomes
            try:
                self.socket = LightSocket(self._hear, self._closed.set)
                await self.socket.connect(self.port, source_of(self.number))
                await self._closed.wait()
            except OSError:  # refused, or nobody is there: the next try is later
                self.num_refused += 1
            num_failures = 0 if self.num_welcomes > num_welcomes else num_failures
            num_failures += 1
            await asyncio.sleep(self._away(self.num_welcomes > num_welcomes, num_failures))

    def _away(self, was_in: bool, num_failures: int) -> float:
        """Seconds to wait, by the agent's own rule (client/agent/contribution.py)."""
        now_s = time.monotonic()
        if was_in:
            self.num_losses += 1
            self._lost_at_s = now_s
        if self._beating is not None:
            self._beating.cancel()
        self._sessions.clear()
        limit_s = doubled_s(
            RECONNECT_BASE_S, num_failures, MAX_SOON_S if now_s < self._lost_at_s + SOON_S else MAX_RECONNECT_S
        )
        return self._draw.uniform(RECONNECT_BASE_S / 2, limit_s)

    # ------------------------------------------------------------ messages

    def tell(self, message: m.NodeMessage) -> None:
        if self.socket is not None:
            self.socket.send(m.encode_message(message))

    def _hear(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            self._prompt(data)
            return
        message = m.decode_coordinator_message(data)
        handler = _HANDLERS.get(type(message))
        if handler is not None:
            handler(self, message)

    def greet(self, message: m.Challenge) -> None:
        self.tell(
            m.Hello(
                protocol_version=PROTOCOL_VERSION,
                node_id=self.identity.node_id,
                public_key=self.identity.public_key,
                signature=self.identity.hello_proof(message.nonce, f"127.0.0.1:{self.port}"),
                app_version="endurance",
                name=f"light {self.number}",
                devices=(DeviceSpec(CPU, DeviceKind.CPU, "simulated", GIB, Variant.FLOAT32, self.max_layers),),
                held=tuple(self.held.values()),
            )
        )

    def welcomed(self, message: m.Welcome) -> None:
        self.num_welcomes += 1
        self._beat_s = message.heartbeat_s
        self.on_welcome(self)
        loop = asyncio.get_running_loop()
        self._beat(loop, loop.time() + self._draw.uniform(0.0, self._beat_s))

    def _beat(self, loop: asyncio.AbstractEventLoop, at_s: float) -> None:
        def beat() -> None:
            self.late_s.append(loop.time() - at_s)
            self.tell(m.Heartbeat(len(self._sessions), 0, 0))
            self._beat(loop, max(at_s + self._beat_s, loop.time()))

        self._beating = loop.call_at(at_s, beat)

    def refused(self, message: m.Refused) -> None:
        self.codes.append(message.code)

    def measure(self, message: m.MeasureDevice) -> None:
        self.tell(m.DeviceMeasured(message.device_id, message.manifest_hash, BENCHMARK))

    def load(self, message: m.AssignSlice) -> None:
        self.num_loads += 1
        self.held[message.device_id] = HeldSlice(
            message.device_id, message.manifest_hash, message.variant, message.layers, message.generation,
            NUM_KV_TOKENS, True, BENCHMARK,
        )  # fmt: skip
        self.tell(m.SliceReady(message.device_id, message.generation, NUM_KV_TOKENS, True))

    def release(self, message: m.ReleaseSlice) -> None:
        self.held.pop(message.device_id, None)

    def links(self, message: m.MeasureLinks) -> None:
        self.tell(m.LinksMeasured(tuple(LinkTime(hop.node_id, RTT_S, 1e8, True) for hop in message.targets)))

    def open(self, message: m.OpenSession) -> None:
        if message.stage == message.num_stages - 1:
            self._sessions[message.session_id] = Playing(message, first_digest(message.history), len(message.history))
            self.stage.tails[message.session_id] = self
        self.tell(m.SessionOpened(message.session_id, message.epoch, message.stage))

    def close(self, message: m.CloseSession) -> None:
        self._sessions.pop(message.session_id, None)

    def where(self, message: m.WhereAreRows) -> None:
        playing = self._sessions.get(message.session_id)
        position = playing.position if playing is not None else 0
        self.tell(m.RowsAt(message.session_id, message.epoch, message.stage, position, position, 0.0))

    # ------------------------------------------------------------ tokens

    def _prompt(self, data: bytes) -> None:
        """For this node as a head: the prompt takes no time on its way to the tail, which begins at once."""
        for segment in decode_frame(data).segments:
            tail = self.stage.tails.get(segment.session_id)
            if tail is not None:
                tail._step(segment.session_id, segment.epoch)

    def _step(self, session_id: str, epoch: int) -> None:
        playing = self._sessions.get(session_id)
        if playing is None or playing.order.epoch != epoch:
            return
        order, loop = playing.order, asyncio.get_running_loop()
        token, playing.digest = next_token(playing.digest)
        position, playing.position = playing.position, playing.position + 1
        is_last = order.stop is not None and position + 1 >= order.stop.max_position
        self._note(order)
        finish = FinishReason.LENGTH if is_last else None
        self.tell(m.TokensSampled(session_id, epoch, position, (token,), (), finish, StepTiming(100, 10)))
        if is_last:
            del self._sessions[session_id]
            self.stage.tails.pop(session_id, None)
        else:
            loop.call_later(self.stage.interval_s, self._step, session_id, epoch)

    def _note(self, order: m.OpenSession) -> None:
        self.stage.sent_at_s.setdefault(order.history, []).append(time.monotonic())


_HANDLERS: dict[type, Callable[[LightNode, Any], None]] = {
    m.Challenge: LightNode.greet,
    m.Welcome: LightNode.welcomed,
    m.Refused: LightNode.refused,
    m.MeasureDevice: LightNode.measure,
    m.AssignSlice: LightNode.load,
    m.ReleaseSlice: LightNode.release,
    m.MeasureLinks: LightNode.links,
    m.OpenSession: LightNode.open,
    m.CloseSession: LightNode.close,
    m.WhereAreRows: LightNode.where,
}
