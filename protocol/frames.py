"""Binary data frames: a fixed header, one entry per session, raw tensor bytes.

    header   32 bytes   magic, version, kind, dtype, flags, segment count, row width, rows, payload size, crc32
    segments 48 bytes each: whose rows these are and where they stand in that session
    payload  num_rows x row_width elements, row-major, little-endian, rows in the segments' order

One frame carries the rows of many sessions for one neighbour, so that a stage's batch is one message. The decoder is
total: any bytes become a Frame or one FrameError, and nothing is allocated before every size has been checked
against the limits and against the length that really arrived.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from protocol.errors import FrameError, FrameFault
from protocol.values import SessionId

MAGIC = b"DLLM"
FRAME_VERSION = 1
HEADER = struct.Struct("<4sBBBBHHIIIII")
SEGMENT = struct.Struct("<16sIIIIHBxIII")
CRC_OFFSET = HEADER.size - 4
U32_MAX = 2**32 - 1
KIND_OFFSET = 5
MAX_PROBE_BYTES = 32 * 2**10
"""Payload of one PROBE frame. A row that comes behind one waits for a fraction of the link's second only."""
NO_SESSION = SessionId("0" * 32)


class FrameKind(IntEnum):
    TOKENS = 1
    """Token ids for the head: a prompt, or what the tail sampled. Row width 1, int32."""
    HIDDEN = 2
    """Hidden states for the next stage, in the model's residual dtype."""
    PROBE = 3
    """Bytes that the receiver throws away: a link's speed is measured with them. Row width 1, any dtype but int32, one
    segment, of no session."""


class WireDtype(IntEnum):
    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT32 = 4

    @property
    def itemsize(self) -> int:
        return 4 if self in (WireDtype.FLOAT32, WireDtype.INT32) else 2


class Phase(IntEnum):
    PREFILL = 1
    DECODE = 2


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What a receiver is ready to take. Checked before anything is allocated."""

    max_segments: int = 1024
    max_row_width: int = 65_536
    max_rows: int = 16_384
    max_payload_bytes: int = 16 * 2**20


PROBE_LIMITS = FrameLimits(max_segments=1, max_row_width=1, max_payload_bytes=MAX_PROBE_BYTES)
"""What is taken of a PROBE frame, whatever else a receiver is ready to take."""


class Segment(NamedTuple):
    """`num_tokens` consecutive rows of one session, the first at `position`, for stage number `stage`.

    `seq` counts the session's segments on this link within an epoch (a roll-back may repeat a position, never a seq).
    `compute_us` and `codec_us` add up over the stages of a token's trip (saturating)."""

    session_id: SessionId
    epoch: int
    position: int
    num_tokens: int
    seq: int
    stage: int
    phase: Phase
    compute_us: int = 0
    codec_us: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A checked frame. `payload` is a view of the received bytes: no copy is made."""

    kind: FrameKind
    dtype: WireDtype
    row_width: int
    segments: tuple[Segment, ...]
    payload: memoryview | bytes

    @property
    def num_rows(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)


def encode_frame(frame: Frame) -> bytes:
    """The frame's bytes. Raises FrameError if every receiver would refuse it: a defect of ours is found where it is."""
    num_rows = frame.num_rows
    size = num_rows * frame.row_width * frame.dtype.itemsize
    if size != memoryview(frame.payload).nbytes:
        raise FrameError(FrameFault.LENGTH_MISMATCH, f"{num_rows} rows need {size} payload bytes")
    if not size or not all(segment.num_tokens > 0 for segment in frame.segments):
        raise FrameError(FrameFault.BAD_SHAPE, f"{num_rows} rows in {len(frame.segments)} segments")
    _check_types(frame.kind, frame.dtype)
    try:
        table = b"".join(_pack_segment(segment) for segment in frame.segments)
        head = HEADER.pack(MAGIC, FRAME_VERSION, frame.kind, frame.dtype, 0, len(frame.segments), 0,
                           frame.row_width, num_rows, size, 0, 0)[:CRC_OFFSET]  # fmt: skip
    except (struct.error, ValueError) as error:
        raise FrameError(FrameFault.BAD_SEGMENT, str(error)) from None
    crc = zlib.crc32(frame.payload, zlib.crc32(table, zlib.crc32(head)))
    return b"".join((head, crc.to_bytes(4, "little"), table, frame.payload))


def decode_frame(data: bytes | bytearray | memoryview, limits: FrameLimits = FrameLimits()) -> Frame:
    """Turn received bytes into a Frame, or raise FrameError. Never anything else, whatever the bytes are."""
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise FrameError(FrameFault.SHORT_HEADER, f"{len(view)} bytes, a header has {HEADER.size}")
    header = _Header(*HEADER.unpack_from(view))
    kind, dtype = _checked_kinds(header)
    _check_sizes(header, dtype, PROBE_LIMITS if kind is FrameKind.PROBE else limits, len(view))
    _check_crc(header, view)
    segments = _segments(header, view)
    return Frame(kind, dtype, header.row_width, segments, view[HEADER.size + SEGMENT.size * header.num_segments :])


def segments_of(data: bytes | bytearray | memoryview) -> tuple[Segment, ...]:
    """The segments of a frame whose payload does not matter now. Raises FrameError.

    Neither the check sum nor the payload is looked at, so this is for frames of this program's own parts only."""
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise FrameError(FrameFault.SHORT_HEADER, f"{len(view)} bytes, a header has {HEADER.size}")
    header = _Header(*HEADER.unpack_from(view))
    _checked_kinds(header)
    if len(view) < HEADER.size + SEGMENT.size * header.num_segments:
        raise FrameError(FrameFault.LENGTH_MISMATCH, f"{len(view)} bytes have no room for the segments")
    return _segments(header, view)


def is_probe(data: bytes) -> bool:
    """Whether it claims to be a PROBE frame, without a look at the rest."""
    return data[: len(MAGIC)] == MAGIC and data[KIND_OFFSET : KIND_OFFSET + 1] == bytes((FrameKind.PROBE,))


def probe_frame(payload: bytes) -> bytes:
    """A PROBE frame with this payload, an even number of bytes. Raises FrameError for more than MAX_PROBE_BYTES."""
    if len(payload) > MAX_PROBE_BYTES:
        raise FrameError(FrameFault.TOO_LARGE, f"a probe of {len(payload)} bytes, limit {MAX_PROBE_BYTES}")
    segment = Segment(NO_SESSION, 0, 0, len(payload) // WireDtype.FLOAT16.itemsize, 0, 0, Phase.PREFILL)
    return encode_frame(Frame(FrameKind.PROBE, WireDtype.FLOAT16, 1, (segment,), payload))


class _Header(NamedTuple):
    magic: bytes
    version: int
    kind: int
    dtype: int
    flags: int
    num_segments: int
    reserved: int
    row_width: int
    num_rows: int
    payload_size: int
    reserved2: int
    crc: int


def _checked_kinds(header: _Header) -> tuple[FrameKind, WireDtype]:
    if header.magic != MAGIC:
        raise FrameError(FrameFault.BAD_MAGIC, "the first four bytes are not DLLM")
    if header.version != FRAME_VERSION or header.flags or header.reserved or header.reserved2:
        raise FrameError(FrameFault.BAD_VERSION, f"version {header.version}, this build reads {FRAME_VERSION}")
    try:
        kind = FrameKind(header.kind)
    except ValueError:
        raise FrameError(FrameFault.BAD_KIND, f"kind {header.kind}") from None
    try:
        dtype = WireDtype(header.dtype)
    except ValueError:
        raise FrameError(FrameFault.BAD_DTYPE, f"dtype code {header.dtype}") from None
    _check_types(kind, dtype)
    return kind, dtype


def _check_types(kind: FrameKind, dtype: WireDtype) -> None:
    if (dtype is WireDtype.INT32) != (kind is FrameKind.TOKENS):
        raise FrameError(FrameFault.BAD_DTYPE, f"{dtype.name} in a {kind.name} frame")


def _check_sizes(header: _Header, dtype: WireDtype, limits: FrameLimits, size: int) -> None:
    if not 1 <= header.num_segments <= limits.max_segments:
        raise FrameError(FrameFault.BAD_SHAPE, f"{header.num_segments} segments, limit {limits.max_segments}")
    if not 1 <= header.row_width <= limits.max_row_width:
        raise FrameError(FrameFault.BAD_SHAPE, f"row width {header.row_width}, limit {limits.max_row_width}")
    if not 1 <= header.num_rows <= limits.max_rows:
        raise FrameError(FrameFault.BAD_SHAPE, f"{header.num_rows} rows, limit {limits.max_rows}")
    if header.payload_size > limits.max_payload_bytes:
        raise FrameError(FrameFault.TOO_LARGE, f"payload {header.payload_size}, limit {limits.max_payload_bytes}")
    if header.payload_size != header.num_rows * header.row_width * dtype.itemsize:
        raise FrameError(FrameFault.LENGTH_MISMATCH, f"payload {header.payload_size} for {header.num_rows} rows")
    expected = HEADER.size + SEGMENT.size * header.num_segments + header.payload_size
    if size != expected:
        raise FrameError(FrameFault.LENGTH_MISMATCH, f"{size} bytes arrived, the header announces {expected}")


def _check_crc(header: _Header, view: memoryview) -> None:
    crc = zlib.crc32(view[HEADER.size :], zlib.crc32(view[:CRC_OFFSET]))
    if crc != header.crc:
        raise FrameError(FrameFault.CRC, "check sum does not match")


def _segments(header: _Header, view: memoryview) -> tuple[Segment, ...]:
    table = view[HEADER.size : HEADER.size + SEGMENT.size * header.num_segments]
    segments = tuple(_unpack_segment(row) for row in SEGMENT.iter_unpack(table))
    total = sum(segment.num_tokens for segment in segments)
    if total != header.num_rows or not all(segment.num_tokens for segment in segments):
        raise FrameError(FrameFault.BAD_SEGMENT, f"segments hold {total} rows, the header says {header.num_rows}")
    return segments


def _pack_segment(s: Segment) -> bytes:
    raw = bytes.fromhex(s.session_id)
    if len(raw) != 16:  # struct would cut or pad it without a word
        raise ValueError(f"a session id has 32 hex digits, not {len(s.session_id)}")
    return SEGMENT.pack(raw, s.epoch, s.position, s.num_tokens, s.seq, s.stage, s.phase,
                        min(s.compute_us, U32_MAX), min(s.codec_us, U32_MAX), 0)  # fmt: skip


def _unpack_segment(row: tuple[bytes, int, int, int, int, int, int, int, int, int]) -> Segment:
    raw, epoch, position, num_tokens, seq, stage, phase, compute_us, codec_us, reserved = row
    if phase not in (Phase.PREFILL, Phase.DECODE) or reserved:
        raise FrameError(FrameFault.BAD_SEGMENT, f"phase {phase}")
    return Segment(SessionId(raw.hex()), epoch, position, num_tokens, seq, stage, Phase(phase), compute_us, codec_us)
