"""Agent <-> worker: messages over the inherited socket. Pure: bytes in, messages out.

    packet   u32 body size | u8 kind (0 JSON, 1 data frame) | u32 link | body

A data frame travels as the wire's own bytes (protocol/frames.py). `link` is the agent's number for the neighbour that
a frame goes to; frames to the worker have link 0. The worker knows no addresses and has no network.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from protocol.values import (
    Bytes,
    Count,
    FinishReason,
    Hex32,
    LayerBenchmark,
    LayerRange,
    Quantisation,
    Sampling,
    Seconds,
    StepTiming,
    StopRule,
    Token,
    TokenLogprobs,
    Variant,
)

IPC_VERSION = 5
"""GUI, agent and worker may be of different builds: they refuse each other by this number."""

MAX_SENT_BYTES = 256 * 2**20
"""Of rows that a worker has sent and keeps, should the next stage be replaced (runtime/send_log.py)."""

PACKET = struct.Struct("<IBI")
MAX_BODY_BYTES = 64 * 2**20


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """Base of all agent-worker messages."""


# ---------------------------------------------------------------- agent -> worker


class MeasureLayers(_Message, frozen=True):
    """Time layers of this model's shape on random weights. Answer: LayersMeasured or CommandFailed."""

    config_json: str
    variant: Variant
    batch_sizes: tuple[Annotated[int, Meta(ge=1)], ...] = (1, 8)
    num_prefill_tokens: Count = 128
    quantisation: Quantisation | None = None


class PlanSlice(_Message, frozen=True):
    """Which of the checkpoint's tensors do these layers need? Answer: SlicePlanned or CommandFailed."""

    config_json: str
    layers: LayerRange
    tensor_names: tuple[str, ...]


class LoadSlice(_Message, frozen=True):
    """Load from `folder` (config.json, safetensors and, if sharded, the index) the tensors that PlanSlice named.

    `max_sent_bytes` of the host's memory may be used for rows that were sent. Answers: LoadProgress..., then
    SliceLoaded or CommandFailed. Replaces a slice loaded before."""

    folder: str
    layers: LayerRange
    variant: Variant
    max_kv_bytes: Bytes
    max_batch_tokens: Count = 512
    max_sent_bytes: Bytes = MAX_SENT_BYTES
    quantisation: Quantisation | None = None


class StartSession(_Message, frozen=True):
    """Open a session at this epoch, ending an older epoch of it. Answer: SessionStarted or SessionFailed.

    `next_link` is where this stage's rows (the tail: the sampled tokens, for the head) go; None when this stage is
    head and tail in one. `num_reserved_tokens` is the KV room to reserve. Only the tail has `sampling`, `stop` and
    `history`. `num_kept_tokens`, `next_from` and `prefix_hashes` are as in messages.OpenSession."""

    session_id: Hex32
    epoch: Count
    stage: Count
    num_stages: Count
    num_prompt_tokens: Count
    num_reserved_tokens: Count
    next_link: Count | None
    next_stage: Count
    sampling: Sampling | None = None
    stop: StopRule | None = None
    history: tuple[Token, ...] = ()
    num_kept_tokens: Count = 0
    next_from: Count = 0
    prefix_hashes: tuple[Hex32, ...] = ()


class EndSession(_Message, frozen=True):
    """`prefix_hashes` is as in messages.CloseSession."""

    session_id: Hex32
    epoch: Count
    prefix_hashes: tuple[Hex32, ...] = ()


class AreYouThere(_Message, frozen=True):
    """Answer: Here, as soon as nothing is being computed."""


AgentMessage = MeasureLayers | PlanSlice | LoadSlice | StartSession | EndSession | AreYouThere


# ---------------------------------------------------------------- worker -> agent


class WorkerReady(_Message, frozen=True):
    """First message, once torch is imported and the device answers. `memory_bytes` is what is free on it now."""

    ipc_version: Count
    torch_version: str
    device_name: str
    memory_bytes: Bytes


class LayersMeasured(_Message, frozen=True):
    benchmark: LayerBenchmark


class SlicePlanned(_Message, frozen=True):
    tensor_names: tuple[str, ...]


class LoadProgress(_Message, frozen=True):
    done_bytes: Bytes
    total_bytes: Bytes


class SliceLoaded(_Message, frozen=True):
    """`has_prefix_cache`: what sessions leave in the KV room may be the beginning of others."""

    num_kv_tokens: Count
    weight_bytes: Bytes
    can_truncate: bool
    has_prefix_cache: bool = False


class CommandFailed(_Message, frozen=True):
    """MeasureLayers, PlanSlice or LoadSlice failed; the worker lives on. `code` as in messages.DeviceFailed."""

    code: str
    message: str


class SessionStarted(_Message, frozen=True):
    """`num_cached_tokens` is as in messages.SessionOpened."""

    session_id: Hex32
    epoch: Count
    num_cached_tokens: Count = 0


class SessionFailed(_Message, frozen=True):
    """The session cannot open or go on here (kv_full, out_of_memory, non_finite, ...); it is gone from the worker."""

    session_id: Hex32
    epoch: Count
    code: str
    message: str


class Sampled(_Message, frozen=True):
    """Consecutive tokens, the first at `position`. `logprobs` of each, if the session wants them."""

    session_id: Hex32
    epoch: Count
    position: Count
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None
    timing: StepTiming
    logprobs: tuple[TokenLogprobs, ...] = ()


class WorkDone(_Message, frozen=True):
    """Forwards since it last told, the decode rows and prompt tokens in them, and their time. About once a second
    while there is any."""

    num_steps: Count
    num_decode_rows: Count
    num_prompt_tokens: Count
    compute_s: Seconds


class NoMemory(_Message, frozen=True):
    """A step found no memory, not in halves either: its sessions have failed. `num_used_tokens` of KV room were
    reserved then; it is the `num_in_a_row`th such step without another between them."""

    num_used_tokens: Count
    num_in_a_row: Count


class Here(_Message, frozen=True):
    """The worker takes orders: whatever it owes, it does not hang."""


WorkerMessage = (
    WorkerReady
    | NoMemory
    | Here
    | LayersMeasured
    | SlicePlanned
    | LoadProgress
    | SliceLoaded
    | CommandFailed
    | SessionStarted
    | SessionFailed
    | Sampled
    | WorkDone
)


# ---------------------------------------------------------------- codec

_encoder = msgspec.json.Encoder()
T = TypeVar("T")
_agent_decoder: msgspec.json.Decoder[AgentMessage] = msgspec.json.Decoder(AgentMessage)
_worker_decoder: msgspec.json.Decoder[WorkerMessage] = msgspec.json.Decoder(WorkerMessage)


class IpcError(Exception):
    """The bytes on the inherited socket are not packets of this version."""


@dataclass(frozen=True, slots=True)
class FramePacket:
    """A data frame's bytes, undecoded, and the link it goes to."""

    link: int
    data: bytes


def pack_message(message: AgentMessage | WorkerMessage) -> bytes:
    body = _encoder.encode(message)
    return PACKET.pack(len(body), 0, 0) + body


def pack_frame(link: int, frame: bytes) -> bytes:
    return PACKET.pack(len(frame), 1, link) + frame


class PacketReader:
    """Cuts a byte stream into packets. Use `from_agent` in the worker and `from_worker` in the agent."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def from_agent(self, data: bytes) -> Iterator[AgentMessage | FramePacket]:
        """Packets completed by `data`; raises IpcError."""
        return self._packets(data, _agent_decoder)

    def from_worker(self, data: bytes) -> Iterator[WorkerMessage | FramePacket]:
        """Packets completed by `data`; raises IpcError."""
        return self._packets(data, _worker_decoder)

    def _packets(self, data: bytes, decoder: msgspec.json.Decoder[T]) -> Iterator[T | FramePacket]:
        self._buffer += data
        while len(self._buffer) >= PACKET.size:
            size, kind, link = PACKET.unpack_from(self._buffer)
            if size > MAX_BODY_BYTES or kind > 1:
                raise IpcError(f"packet of kind {kind} with {size} bytes")
            if len(self._buffer) < PACKET.size + size:
                return
            body = bytes(memoryview(self._buffer)[PACKET.size : PACKET.size + size])
            del self._buffer[: PACKET.size + size]
            yield FramePacket(link, body) if kind else _decoded(decoder, body)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise IpcError(f"message not understood: {error}") from None
