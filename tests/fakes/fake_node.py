"""A node without torch: plays its stages with a toy model whose every token depends on all tokens before it.

Pure: `hear` takes what the coordinator sent and returns what the node answers. A row of "hidden state" is the token
itself, so a stage that got a wrong, missing or repeated row gives a wrong answer, as a real one would.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec

from protocol import PROTOCOL_VERSION
from protocol import messages as m
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, decode_frame, encode_frame
from protocol.values import (
    KV_BLOCK_TOKENS,
    DeviceId,
    DeviceSpec,
    FinishReason,
    HeldSlice,
    LayerBenchmark,
    NodeId,
    SessionId,
    StepTiming,
    TokenLogprobs,
)
from tests.fakes import pool_facts as facts

Rule = Callable[[Sequence[int]], int]
"""The next token, given all before it."""


def next_token(history: Sequence[int]) -> int:
    """The toy model: never 0, 1 or 2, and different after any change of the history."""
    return sum((place + 1) * token for place, token in enumerate(history)) % 997 + 3


def answer_to(prompt: Sequence[int], num_tokens: int, rule: Rule = next_token) -> list[int]:
    """What an undisturbed pool says."""
    history = list(prompt)
    for _ in range(num_tokens):
        history.append(rule(history))
    return history[len(prompt) :]


@dataclass
class Leg:
    """One stage of one session. `sent` is what the stage has kept of its own rows, and may send again."""

    order: m.OpenSession
    kv: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    seq: int = 0
    has_sent_again: bool = False
    num_cached: int = 0
    """Rows from the cache, until the first row says how many of them are used."""

    def takes(self, position: int) -> bool:
        is_behind_cached = position <= self.num_cached and position % KV_BLOCK_TOKENS == 0
        return position == len(self.kv) or (self.num_cached > 0 and is_behind_cached)

    def names(self, close: m.CloseSession) -> tuple[str, ...]:
        is_current = close.epoch == self.order.epoch and close.prefix_hashes
        return close.prefix_hashes if is_current else self.order.prefix_hashes

    @property
    def is_tail(self) -> bool:
        return self.order.stage == self.order.num_stages - 1


class FakeNode:
    """One node. `silent` makes it a stopped one: it hears and says nothing; `hangs`: only its worker does nothing any
    more; `loads` False: it never becomes ready."""

    def __init__(
        self,
        number: int,
        *devices: DeviceSpec,
        rule: Rule = next_token,
        layer_s: float = 0.01,
        num_kv_tokens: int = 10_000,
        address: str | None = None,
        version: int = PROTOCOL_VERSION,
        caches: bool = False,
    ) -> None:
        self.node_id: NodeId = facts.node_id(number)
        self.hello = facts.hello(number, *devices, address=address, version=version)
        self.rule = rule
        self.benchmark: LayerBenchmark = facts.benchmark(layer_s)
        self.num_kv_tokens = num_kv_tokens
        self.loads = True
        self.silent = False
        self.hangs = False
        self.keeps_kv = True
        """False: whatever it is told to keep is gone."""
        self.max_sent_rows = 10_000
        """Of longer sessions it does not keep what it sent."""
        self.caches = caches
        """Whether it keeps whole blocks of ended sessions, by device and name."""
        self.cached: dict[tuple[DeviceId, str], list[int]] = {}
        self.keeps_sent = True
        """False: it does not know any more what was sent of cached blocks."""
        self.heard: list[m.CoordinatorMessage | bytes] = []
        self.legs: dict[tuple[SessionId, DeviceId], Leg] = {}
        self.computed: dict[tuple[SessionId, int], int] = {}
        """Rows by session and epoch, of all its stages together."""
        self.num_refused_rows = 0
        self.num_tokens = 0
        self.held: dict[DeviceId, HeldSlice] = {}
        """What is loaded, as an agent tells it when it comes back."""
        self.num_loads = self.num_measured = 0

    def hear(self, data: m.CoordinatorMessage | bytes) -> list[m.NodeMessage | bytes]:
        """Everything the node has to say to that."""
        if self.silent:
            return []
        self.heard.append(data)
        if self.hangs:
            asked = data if isinstance(data, m.WhereAreRows) else None
            return [m.RowsAt(asked.session_id, asked.epoch, asked.stage, 0, 0, 3600.0)] if asked else []
        match data:
            case bytes():
                return self._receive(decode_frame(data))
            case m.MeasureDevice(device_id, digest):
                self.num_measured += 1
                return [m.DeviceMeasured(device_id, digest, self.benchmark)]
            case m.AssignSlice():
                self._end_all(data.device_id)
                return self._load(data)
            case m.ReleaseSlice(device_id):
                self._end_all(device_id)
            case m.OpenSession():
                return [self._open(data)]
            case m.WhereAreRows():
                return [self._where(data)]
            case m.CloseSession(session_id, epoch):
                for key, leg in list(self.legs.items()):
                    if key[0] == session_id and leg.order.epoch <= epoch:
                        self._leave(key[1], leg.kv, leg.names(data))
                        del self.legs[key]
        return []

    def _end_all(self, device_id: DeviceId) -> None:
        """A device that is to do something else ends what ran over it, without being told."""
        self.legs = {key: leg for key, leg in self.legs.items() if key[1] != device_id}
        self.cached = {key: rows for key, rows in self.cached.items() if key[0] != device_id}

    def of_type(self, kind: type) -> list[m.CoordinatorMessage | bytes]:
        return [data for data in self.heard if isinstance(data, kind)]

    def _load(self, order: m.AssignSlice) -> list[m.NodeMessage | bytes]:
        progress = m.SliceProgress(order.device_id, order.generation, True, 50, 100)
        ready = m.SliceReady(order.device_id, order.generation, self.num_kv_tokens, True, self.caches)
        if not self.loads:
            return [progress]
        before = self.held.get(order.device_id)
        self.held[order.device_id] = held = HeldSlice(
            order.device_id,
            order.manifest_hash,
            order.variant,
            order.layers,
            order.generation,
            self.num_kv_tokens,
            True,
            self.benchmark,
            self.caches,
        )
        is_same = before is not None and msgspec.structs.replace(before, generation=order.generation) == held
        self.num_loads += not is_same
        return [progress, ready]

    def _where(self, asked: m.WhereAreRows) -> m.NodeMessage:
        """It computes in no time: nothing ever waits here."""
        asked_for = (asked.session_id, asked.stage, asked.epoch)
        legs = [
            leg for leg in self.legs.values() if (leg.order.session_id, leg.order.stage, leg.order.epoch) == asked_for
        ]
        leg = next(iter(legs), None)
        if leg is None:
            return m.SessionBroken(asked.session_id, asked.epoch, asked.stage, "not_open", "It is not open here.")
        has_all = len(leg.kv) >= leg.order.num_prompt_tokens
        num_sent = (len(leg.kv) + 1) * has_all if leg.is_tail else len(leg.kv)
        return m.RowsAt(asked.session_id, asked.epoch, asked.stage, len(leg.kv), num_sent, 0.0)

    def _open(self, order: m.OpenSession) -> m.NodeMessage:
        """What is kept is found again under the same device; what is not, is forgotten first, as in a worker."""
        session_id = SessionId(order.session_id)
        before = self.legs.pop((session_id, order.device_id), None)
        leg = Leg(order)
        if num_kept := order.num_kept_tokens:
            is_tail = order.stage == order.num_stages - 1
            sends_again = not is_tail and order.next_from < num_kept
            if before is None or not self.keeps_kv or len(before.kv) < num_kept:
                return _nothing_kept(order)
            if sends_again and len(before.sent) < num_kept:
                return _nothing_kept(order)
            leg.kv, leg.sent = before.kv[:num_kept], before.sent[:num_kept]
        elif self.caches:
            leg.kv = self._cached_rows(order)
            leg.num_cached = len(leg.kv)
        self.legs[session_id, order.device_id] = leg
        return m.SessionOpened(order.session_id, order.epoch, order.stage, leg.num_cached)

    def _leave(self, device_id: DeviceId, rows: list[int], names: Sequence[str]) -> None:
        """Whole blocks of an ended session."""
        for place, name in enumerate(names if self.caches else ()):
            block = rows[place * KV_BLOCK_TOKENS : (place + 1) * KV_BLOCK_TOKENS]
            if len(block) == KV_BLOCK_TOKENS:
                self.cached[device_id, name] = block

    def _cached_rows(self, order: m.OpenSession) -> list[int]:
        """Less the prompt's last row."""
        names = order.prefix_hashes[: (order.num_prompt_tokens - 1) // KV_BLOCK_TOKENS]
        blocks = takewhile(lambda block: block is not None, (self.cached.get((order.device_id, n)) for n in names))
        return [row for block in blocks if block is not None for row in block]

    def _leg_of(self, segment: Segment) -> Leg | None:
        legs = [leg for (session_id, _), leg in self.legs.items() if session_id == segment.session_id]
        return next((g for g in legs if (g.order.stage, g.order.epoch) == (segment.stage, segment.epoch)), None)

    def _receive(self, frame: Frame) -> list[m.NodeMessage | bytes]:
        answers: list[m.NodeMessage | bytes] = []
        code = "i" if frame.kind is FrameKind.TOKENS else "f"
        values = [int(value) for value in struct.unpack(f"<{frame.num_rows}{code}", bytes(frame.payload))]
        for segment in frame.segments:
            rows, values = values[: segment.num_tokens], values[segment.num_tokens :]
            leg = self._leg_of(segment)
            if leg is None or not leg.takes(segment.position):
                self.num_refused_rows += len(rows)
            else:
                if leg.num_cached and self.keeps_sent:
                    leg.sent = leg.kv[: segment.position]
                leg.kv, leg.num_cached = [*leg.kv[: segment.position], *rows], 0
                key = segment.session_id, segment.epoch
                self.computed[key] = self.computed.get(key, 0) + len(rows)
                answers += self._sample(leg) if leg.is_tail else self._pass_on(leg, rows)
        return answers

    def _pass_on(self, leg: Leg, rows: Sequence[int]) -> list[m.NodeMessage | bytes]:
        """These rows, less what the next stage has; before the first of them what it has not and is kept here."""
        first = len(leg.kv) - len(rows)
        if len(leg.sent) == first and len(leg.kv) <= self.max_sent_rows:
            leg.sent += rows
        order, frames = leg.order, []
        if not leg.has_sent_again and order.next_from < order.num_kept_tokens:
            again = leg.sent[order.next_from : order.num_kept_tokens]
            frames.append(_frame(leg, FrameKind.HIDDEN, order.stage + 1, order.next_from, again))
        leg.has_sent_again = True
        start = max(first, order.next_from)
        if start < len(leg.kv):
            frames.append(_frame(leg, FrameKind.HIDDEN, order.stage + 1, start, leg.kv[start:]))
        return [*frames]

    def _sample(self, leg: Leg) -> list[m.NodeMessage | bytes]:
        if len(leg.kv) < leg.order.num_prompt_tokens or leg.order.stop is None:
            return []
        token, position = self.rule(leg.kv), len(leg.kv)
        self.num_tokens += 1
        is_last = position + 1 >= leg.order.stop.max_position
        finish = FinishReason.STOP if token in leg.order.stop.stop_tokens else FinishReason.LENGTH if is_last else None
        sampled = m.TokensSampled(
            leg.order.session_id,
            leg.order.epoch,
            position,
            (token,),
            _logprobs(leg, token),
            finish,
            StepTiming(100, 10),
        )
        return [sampled] if finish else [sampled, _frame(leg, FrameKind.TOKENS, 0, position, [token])]


def _logprobs(leg: Leg, token: int) -> tuple[TokenLogprobs, ...]:
    num = leg.order.sampling and leg.order.sampling.num_logprobs
    return () if num is None else (TokenLogprobs(-0.5, ((token, -0.5), (token + 1, -1.5))[:num]),)


def _nothing_kept(order: m.OpenSession) -> m.SessionBroken:
    return m.SessionBroken(order.session_id, order.epoch, order.stage, "nothing_kept", "It is gone.")


def _frame(leg: Leg, kind: FrameKind, stage: int, position: int, rows: Sequence[int]) -> bytes:
    dtype, code = (WireDtype.INT32, "i") if kind is FrameKind.TOKENS else (WireDtype.FLOAT32, "f")
    phase = Phase.DECODE if position >= leg.order.num_prompt_tokens else Phase.PREFILL
    segment = Segment(
        SessionId(leg.order.session_id), leg.order.epoch, position, len(rows), leg.seq, stage, phase, 100, 10
    )
    leg.seq += 1
    return encode_frame(Frame(kind, dtype, 1, (segment,), struct.pack(f"<{len(rows)}{code}", *rows)))
