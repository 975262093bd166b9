"""A worker without torch: what client/runtime's worker does with sessions and frames, on the toy model.

It drops rows of sessions that have ended here, or have gone on to another epoch: its orders overtake them. Rows of the
epoch of now must be the next ones.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from client import ipc
from protocol.env import ConnectionClosed
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, decode_frame, encode_frame
from protocol.values import BatchTime, FinishReason, LayerBenchmark, LayerRange, SessionId, StepTiming
from tests.fakes.virtual_processes import VirtualChannel
from tests.simulation.history import History
from tests.simulation.model import (
    DEADLY_TOKEN,
    NAN_ROW,
    POISON_TOKEN,
    Block,
    Layers,
    joined,
    row_of_token,
    rows_of,
    tenant_of,
    tensor_names,
    token_of_row,
)

BLOCK_TOKENS = 16
KILLED = 137


@dataclass
class Traits:
    """What this worker is like, and what is wrong with it at the moment."""

    layer_s: float = 0.01
    num_kv_tokens: int = 320
    max_batch: int = 6
    can_truncate: bool = True
    has_prefix_cache: bool = True
    slowness: float = 1.0
    is_hung: bool = False
    nan: bool = False
    """Says that what it computed is not a number, as it should."""
    leaks_nan: bool = False
    """Passes on what is not a number without a word (a tail would have to make a token of it, and cannot)."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, **changes: object) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass
class Leg:
    """One session on this stage. `sent` are its outputs from the first on, should the next stage be replaced;
    `sends_again`: the next stage has not got all of those that were kept from the epoch before."""

    start: ipc.StartSession
    layers: Layers
    num_received: int = 0
    waiting: deque[bytes] = field(default_factory=deque)
    seq: int = 0
    is_finished: bool = False
    sent: list[bytes] = field(default_factory=list)
    sends_again: bool = False
    num_cached: int = 0
    """Rows from the cache, until the first row says how many of them are used."""
    num_sound: int = 0
    """Rows that were seen to give numbers."""
    found: list[list[bytes]] = field(default_factory=list)
    """What others have sent of the blocks from the cache, as far as it is known."""

    def begins(self, position: int) -> None:
        """The first row is the one at this position: what was found of later ones is not used."""
        if self.num_cached and position <= self.num_cached and position % BLOCK_TOKENS == 0:
            self.layers.truncate(position)
            self.num_received = self.num_sound = position
            self.sent = [row for rows in self.found[: position // BLOCK_TOKENS] for row in rows]
        self.num_cached = 0

    @property
    def is_tail(self) -> bool:
        return self.start.stage == self.start.num_stages - 1

    @property
    def num_blocks(self) -> int:
        return -(-self.start.num_reserved_tokens // BLOCK_TOKENS)

    def has_kept(self, start: ipc.StartSession) -> bool:
        num_kept = start.num_kept_tokens
        return num_kept <= self.layers.length and (not _sends_again(start) or num_kept <= len(self.sent))

    def goes_on(self, start: ipc.StartSession) -> Leg:
        """In the next epoch, behind what is to be kept of this one."""
        num_kept = start.num_kept_tokens
        self.layers.truncate(num_kept)
        sound = min(num_kept, self.num_sound)
        sent, again = self.sent[:num_kept], _sends_again(start)
        return Leg(start, self.layers, num_kept, sent=sent, sends_again=again, num_sound=sound)


class Worker:
    """Commands and frames in, one batch after another, rows and tokens out."""

    def __init__(self, name: str, traits: Traits, channel: VirtualChannel, history: History) -> None:
        self.name = name
        self.legs: dict[SessionId, Leg] = {}
        self._traits = traits
        self._channel = channel
        self._history = history
        self._reader = ipc.PacketReader()
        self._layers = LayerRange(0, 1)
        self._cache: OrderedDict[str, tuple[SessionId, Block, list[bytes]]] = OrderedDict()
        """Whole blocks of ended sessions by name: whose they were, and what was sent of them; those used longest ago
        first."""
        self._refused: set[tuple[str, int]] = set()
        """Sessions that ended here by themselves: the agent may not have heard of it yet."""
        self._ready: dict[int, dict[FrameKind, list[tuple[Segment, list[bytes]]]]] = {}
        self._handlers: dict[type, Callable[[Any], list[ipc.WorkerMessage]]] = {
            ipc.MeasureLayers: self._measure,
            ipc.PlanSlice: lambda message: [ipc.SlicePlanned(tensor_names(message.layers))],
            ipc.LoadSlice: self._load,
            ipc.StartSession: self._start,
            ipc.EndSession: self._end,
            ipc.AreYouThere: lambda message: [ipc.Here()],
            ipc.FramePacket: self._receive,
        }

    @property
    def num_free_blocks(self) -> int:
        return self._traits.num_kv_tokens // BLOCK_TOKENS - sum(leg.num_blocks for leg in self.legs.values())

    @property
    def has_work(self) -> bool:
        return any(leg.waiting for leg in self.legs.values())

    async def run(self) -> int:
        await self._say(ipc.WorkerReady(ipc.IPC_VERSION, "none", "toy", 2**30))
        try:
            while True:
                await self._take()
                if await self._dies_in_step():
                    return KILLED
        except ConnectionClosed:
            return 0

    async def _take(self) -> None:
        """What has arrived; if there is nothing to compute, wait for something."""
        await self._unhung()
        while not self.has_work or self._channel.has_mail:
            for packet in self._reader.from_agent(await self._channel.read()):
                for answer in self._handlers[type(packet)](packet):
                    await self._say(answer)
                await self._send()
            await self._unhung()

    async def _dies_in_step(self) -> bool:
        """A forward takes its time; what comes out of it leaves when it is over, however late that is. Of one that
        kills the worker nothing does."""
        takes = list(self._takes())
        traits = self._traits
        await asyncio.sleep(len(self._layers) * traits.layer_s * traits.slowness)
        await self._unhung()
        if any(leg.start.stage == 0 and row_of_token(DEADLY_TOKEN) in rows for leg, rows in takes):
            self._history.note("%s: dies of what it computes", self.name)
            return True
        for leg, rows in takes:
            for message in self._compute(leg, rows):
                await self._say(message)
        await self._send()
        return False

    async def _send(self) -> None:
        for link, frame in self._frames():
            await self._channel.write(ipc.pack_frame(link, frame))

    def _takes(self) -> Iterator[tuple[Leg, list[bytes]]]:
        for leg in list(self.legs.values()):
            rows = [leg.waiting.popleft() for _ in range(min(len(leg.waiting), self._traits.max_batch))]
            if rows:
                yield leg, rows

    async def _unhung(self) -> None:
        while self._traits.is_hung:
            await self._traits.changed.wait()

    async def _say(self, message: ipc.WorkerMessage) -> None:
        await self._channel.write(ipc.pack_message(message))

    # ------------------------------------------------------------ commands

    def _measure(self, message: ipc.MeasureLayers) -> list[ipc.WorkerMessage]:
        layer_s = self._traits.layer_s
        return [ipc.LayersMeasured(LayerBenchmark((BatchTime(1, layer_s),), layer_s / 10, 0.0))]

    def _load(self, message: ipc.LoadSlice) -> list[ipc.WorkerMessage]:
        self._layers = message.layers
        self.legs.clear()
        self._cache.clear()
        traits = self._traits
        return [ipc.SliceLoaded(traits.num_kv_tokens, 1, traits.can_truncate, traits.has_prefix_cache)]

    def _start(self, message: ipc.StartSession) -> list[ipc.WorkerMessage]:
        session_id = SessionId(message.session_id)
        current = self.legs.get(session_id)
        if current is not None and current.start.epoch > message.epoch:
            return [self._failed(message, "stale_epoch")]
        code = self._open(session_id, message)
        if code:
            return [self._failed(message, code)]
        return [ipc.SessionStarted(message.session_id, message.epoch, self.legs[session_id].num_cached)]

    def _open(self, session_id: SessionId, message: ipc.StartSession) -> str:
        """Why not, or nothing. Of an older epoch nothing is left but what the new one keeps."""
        is_able = self._traits.can_truncate or not (message.num_kept_tokens or message.next_from)
        self._history.expect(is_able, f"{self.name}: is to keep rows, and does not know how")
        knows = self._traits.has_prefix_cache or not message.prefix_hashes
        self._history.expect(knows, f"{self.name}: is told names of blocks, and has no cache")
        current = self.legs.pop(session_id, None)
        if message.num_kept_tokens:
            if current is None or not current.has_kept(message):
                return "nothing_kept"
            self.legs[session_id] = current.goes_on(message)
            return ""
        if current is not None:
            self._leave(current, current.start.prefix_hashes)
        leg = Leg(message, Layers(self._layers))
        if leg.num_blocks > self.num_free_blocks:
            return "kv_full"
        self._make_room(leg.num_blocks)
        self._begin_cached(session_id, leg)
        self.legs[session_id] = leg
        return ""

    def _begin_cached(self, session_id: SessionId, leg: Leg) -> None:
        """With as much of the prompt, less its last row, as is here. What another tenant has left is none of its."""
        for name in leg.start.prefix_hashes[: (leg.start.num_prompt_tokens - 1) // BLOCK_TOKENS]:
            if name not in self._cache:
                break
            owner, block, sent = self._cache[name]
            self._cache.move_to_end(name)
            is_own = self._tenant_of(owner) == self._tenant_of(session_id)
            self._history.expect(is_own, f"{self.name}: a session is given what another tenant has left")
            leg.layers.append(block)
            leg.found.append(sent)
        leg.num_received = leg.num_cached = leg.num_sound = leg.layers.length

    def _tenant_of(self, session_id: SessionId) -> str:
        return tenant_of(session_id)

    def _leave(self, leg: Leg, names: Sequence[str]) -> None:
        """Whole blocks of an ended session, the last one first: a beginning outlives what comes behind it."""
        num_whole = min(len(names), leg.num_sound // BLOCK_TOKENS)
        for place in reversed(range(num_whole)):
            start, stop = place * BLOCK_TOKENS, (place + 1) * BLOCK_TOKENS
            block, sent = leg.layers.block(start, stop), leg.sent[start:stop]
            self._cache.setdefault(names[place], (SessionId(leg.start.session_id), block, sent))
            self._cache.move_to_end(names[place])
        self._make_room(0)

    def _make_room(self, num_blocks: int) -> None:
        """What is cached is where nobody has reserved anything."""
        while len(self._cache) > max(0, self.num_free_blocks - num_blocks):
            self._cache.popitem(last=False)

    def _end(self, message: ipc.EndSession) -> list[ipc.WorkerMessage]:
        leg = self.legs.get(SessionId(message.session_id))
        if leg is not None and leg.start.epoch <= message.epoch:
            del self.legs[SessionId(message.session_id)]
            has_names = message.prefix_hashes and leg.start.epoch == message.epoch
            self._leave(leg, message.prefix_hashes if has_names else leg.start.prefix_hashes)
        return []

    def _failed(self, start: ipc.StartSession, code: str) -> ipc.WorkerMessage:
        self._refused.add((start.session_id, start.epoch))
        return ipc.SessionFailed(start.session_id, start.epoch, code, f"the toy says {code}")

    # ------------------------------------------------------------ rows

    def _receive(self, packet: ipc.FramePacket) -> list[ipc.WorkerMessage]:
        frame = decode_frame(packet.data)
        rows = rows_of(frame.payload, frame.kind is FrameKind.TOKENS)
        for segment in frame.segments:
            mine, rows = rows[: segment.num_tokens], rows[segment.num_tokens :]
            if (segment.session_id, segment.epoch) not in self._refused:
                self._push(segment, mine)
        return []

    def _push(self, segment: Segment, rows: list[bytes]) -> None:
        """What is not the next of an open session is taken nevertheless where it can be: the answer will show it."""
        leg = self.legs.get(segment.session_id)
        if leg is None or segment.epoch < leg.start.epoch:
            return
        leg.begins(segment.position)
        seen = (segment.epoch, segment.stage, segment.position, leg.is_finished)
        wanted = (leg.start.epoch, leg.start.stage, leg.num_received, False)
        if seen != wanted:
            self._history.blame(
                f"{self.name}: wrong rows of session {int(segment.session_id, 16)} arrive: (epoch, stage, position,"
                f" finished) are {seen}, expected {wanted}"
            )
        leg.num_received += len(rows)
        leg.waiting.extend(rows)
        self._send_again(leg)

    def _send_again(self, leg: Leg) -> None:
        """What the next stage lacks, once the first row of this epoch is here: before that, it may not be open yet."""
        if leg.sends_again:
            leg.sends_again = False
            start = leg.start
            self._queue(leg, FrameKind.HIDDEN, start.next_from, leg.sent[start.next_from : start.num_kept_tokens])

    def _compute(self, leg: Leg, rows: list[bytes]) -> list[ipc.WorkerMessage]:
        position = leg.layers.length
        out = [self._forward(leg, row) for row in rows]
        if NAN_ROW in out and (leg.is_tail or not self._traits.leaks_nan):
            if self.legs.get(SessionId(leg.start.session_id)) is leg:
                del self.legs[SessionId(leg.start.session_id)]
            return [self._failed(leg.start, "non_finite")]
        if not leg.is_tail:
            if NAN_ROW not in out and leg.num_sound == position:
                leg.num_sound = leg.layers.length
            if len(leg.sent) == position:
                leg.sent += out
            num_had = min(max(0, leg.start.next_from - position), len(out))
            if num_had < len(out):
                self._queue(leg, FrameKind.HIDDEN, position + num_had, out[num_had:])
            return []
        return self._sampled(leg, out[-1]) if leg.layers.length >= leg.start.num_prompt_tokens else []

    def _forward(self, leg: Leg, row: bytes) -> bytes:
        traits = self._traits
        is_poison = leg.start.stage == 0 and struct.unpack_from("<i", row)[0] == POISON_TOKEN
        out = leg.layers.forward(row)
        return NAN_ROW if is_poison or traits.nan or traits.leaks_nan else out

    def _sampled(self, leg: Leg, row: bytes) -> list[ipc.WorkerMessage]:
        start, position = leg.start, leg.layers.length
        leg.num_sound = position
        assert start.sampling is not None, "only the tail samples"
        assert start.stop is not None, "only the tail samples"
        token = token_of_row(row, start.sampling, position)
        is_last = position + 1 >= start.stop.max_position
        reason = FinishReason.STOP if token in start.stop.stop_tokens else FinishReason.LENGTH if is_last else None
        leg.is_finished = reason is not None
        if reason is None and start.next_link is None:
            leg.num_received += 1
            leg.waiting.append(rows_of(struct.pack("<i", token), is_tokens=True)[0])
        elif reason is None:
            self._queue(leg, FrameKind.TOKENS, position, [struct.pack("<i", token)])
        return [ipc.Sampled(start.session_id, start.epoch, position, (token,), reason, StepTiming(100, 10))]

    def _queue(self, leg: Leg, kind: FrameKind, position: int, rows: list[bytes]) -> None:
        start = leg.start
        assert start.next_link is not None, "a stage that is not alone has a neighbour"
        phase = Phase.PREFILL if position < start.num_prompt_tokens else Phase.DECODE
        segment = Segment(
            SessionId(start.session_id), start.epoch, position, len(rows), leg.seq, start.next_stage, phase, 100, 10
        )
        leg.seq += 1
        self._ready.setdefault(start.next_link, {}).setdefault(kind, []).append((segment, rows))

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """One per neighbour, with the rows of all sessions."""
        ready, self._ready = self._ready, {}
        for link, kinds in ready.items():
            for kind, parts in kinds.items():
                dtype, width = (WireDtype.INT32, 1) if kind is FrameKind.TOKENS else (WireDtype.FLOAT32, 4)
                payload = joined([row for _, rows in parts for row in rows])
                yield link, encode_frame(Frame(kind, dtype, width, tuple(segment for segment, _ in parts), payload))


def _sends_again(start: ipc.StartSession) -> bool:
    """Whether the next stage lacks rows that are not computed again here. The tail's rows are its own business."""
    return start.stage != start.num_stages - 1 and start.next_from < start.num_kept_tokens
