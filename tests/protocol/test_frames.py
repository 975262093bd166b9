"""The data frame: what goes in comes out, and nothing but a valid frame or a FrameError comes out of the decoder."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FrameError, FrameFault
from protocol.frames import (
    CRC_OFFSET,
    HEADER,
    MAX_PROBE_BYTES,
    SEGMENT,
    U32_MAX,
    Frame,
    FrameKind,
    FrameLimits,
    Phase,
    Segment,
    WireDtype,
    decode_frame,
    encode_frame,
    is_probe,
    probe_frame,
    segments_of,
)
from protocol.values import SessionId

SESSION = SessionId("00112233445566778899aabbccddeeff")
U32 = st.integers(0, U32_MAX)

segments = st.builds(
    Segment,
    session_id=st.binary(min_size=16, max_size=16).map(lambda raw: SessionId(raw.hex())),
    epoch=U32,
    position=U32,
    num_tokens=st.integers(1, 5),
    seq=U32,
    stage=st.integers(0, 2**16 - 1),
    phase=st.sampled_from(Phase),
    compute_us=U32,
    codec_us=U32,
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    dtype = draw(st.sampled_from(WireDtype))
    kind = FrameKind.TOKENS if dtype is WireDtype.INT32 else draw(st.sampled_from((FrameKind.HIDDEN, FrameKind.PROBE)))
    is_probe_frame = kind is FrameKind.PROBE
    table = tuple(draw(st.lists(segments, min_size=1, max_size=1 if is_probe_frame else 6)))
    row_width = 1 if is_probe_frame else draw(st.integers(1, 9))
    size = sum(segment.num_tokens for segment in table) * row_width * dtype.itemsize
    return Frame(kind, dtype, row_width, table, draw(st.binary(min_size=size, max_size=size)))


def small_frame(num_tokens: int = 3, **changes: object) -> Frame:
    segment = Segment(SESSION, 1, 7, num_tokens, 2, 1, Phase.DECODE)
    return replace(
        Frame(FrameKind.HIDDEN, WireDtype.FLOAT16, 4, (segment,), bytes(i % 256 for i in range(num_tokens * 8))),
        **changes,
    )


def with_crc(data: bytes) -> bytes:
    """The bytes with a check sum that fits: what a sender could do that lies on purpose."""
    crc = zlib.crc32(data[HEADER.size :], zlib.crc32(data[:CRC_OFFSET]))
    return data[:CRC_OFFSET] + struct.pack("<I", crc) + data[HEADER.size :]


def fault_of(data: bytes, limits: FrameLimits = FrameLimits()) -> FrameFault:
    with pytest.raises(FrameError) as caught:
        decode_frame(data, limits)
    assert str(caught.value).startswith("data frame refused")
    return caught.value.code


@given(frames())
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    back = decode_frame(encode_frame(frame))
    assert replace(back, payload=bytes(back.payload)) == frame


@given(frames())
def test_the_payload_is_a_view_and_not_a_copy(frame: Frame) -> None:
    data = encode_frame(frame)
    payload = decode_frame(data).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is data


def test_timings_saturate_instead_of_overflowing() -> None:
    frame = small_frame()
    late = frame.segments[0]._replace(compute_us=2**40, codec_us=2**33)
    back = decode_frame(encode_frame(replace(frame, segments=(late,))))
    assert (back.segments[0].compute_us, back.segments[0].codec_us) == (U32_MAX, U32_MAX)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_with_a_frame_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(data)


@given(frames(), st.data())
def test_a_mutated_frame_is_a_frame_or_a_frame_error(frame: Frame, data: st.DataObject) -> None:
    """Also with a check sum that fits, so that the checks behind it are reached."""
    mutated = bytearray(encode_frame(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(mutated)))
    for candidate in (bytes(mutated), with_crc(bytes(mutated)), bytes(mutated[:cut]), bytes(mutated) * 2):
        try:
            decoded = decode_frame(candidate)
        except FrameError:
            continue
        assert len(memoryview(decoded.payload)) == decoded.num_rows * decoded.row_width * decoded.dtype.itemsize
        assert all(segment.num_tokens for segment in decoded.segments)


def test_every_single_bit_flip_is_refused() -> None:
    """Header, segment table and payload: a check sum over all of it finds every one (and two, and any burst of 32)."""
    data = encode_frame(small_frame())
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        fault_of(bytes(flipped))


def test_flips_in_a_large_payload_are_caught() -> None:
    data = bytearray(encode_frame(small_frame(2000, payload=random.Random(1).randbytes(16_000))))
    start = HEADER.size + SEGMENT.size
    for position in random.Random(2).sample(range(start * 8, len(data) * 8), 300):
        data[position // 8] ^= 1 << position % 8
        assert fault_of(bytes(data)) is FrameFault.CRC
        data[position // 8] ^= 1 << position % 8


@pytest.mark.parametrize("size", [0, 1, 4, HEADER.size - 1])
def test_a_short_header_is_named_so(size: int) -> None:
    assert fault_of(encode_frame(small_frame())[:size]) is FrameFault.SHORT_HEADER


def header(**changes: int | bytes) -> bytes:
    """A header with an announced payload that does not follow."""
    fields: dict[str, int | bytes] = {
        "magic": b"DLLM", "version": 1, "kind": 2, "dtype": 2, "flags": 0, "num_segments": 1, "reserved": 0,
        "row_width": 4, "num_rows": 3, "payload_size": 24, "reserved2": 0, "crc": 0,
    }  # fmt: skip
    return HEADER.pack(*(fields | changes).values())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"magic": b"dllm"}, FrameFault.BAD_MAGIC),
        ({"version": 0}, FrameFault.BAD_VERSION),
        ({"version": 99}, FrameFault.BAD_VERSION),
        ({"flags": 1}, FrameFault.BAD_VERSION),
        ({"reserved": 1}, FrameFault.BAD_VERSION),
        ({"reserved2": 1}, FrameFault.BAD_VERSION),
        ({"kind": 0}, FrameFault.BAD_KIND),
        ({"kind": 200}, FrameFault.BAD_KIND),
        ({"dtype": 0}, FrameFault.BAD_DTYPE),
        ({"dtype": 200}, FrameFault.BAD_DTYPE),
        ({"dtype": 4}, FrameFault.BAD_DTYPE),
        ({"kind": 1}, FrameFault.BAD_DTYPE),
        ({"num_segments": 0}, FrameFault.BAD_SHAPE),
        ({"num_segments": 1025}, FrameFault.BAD_SHAPE),
        ({"row_width": 0}, FrameFault.BAD_SHAPE),
        ({"row_width": U32_MAX}, FrameFault.BAD_SHAPE),
        ({"num_rows": 0}, FrameFault.BAD_SHAPE),
        ({"num_rows": U32_MAX}, FrameFault.BAD_SHAPE),
        ({"payload_size": U32_MAX}, FrameFault.TOO_LARGE),
        ({"payload_size": 23}, FrameFault.LENGTH_MISMATCH),
        ({"payload_size": 25}, FrameFault.LENGTH_MISMATCH),
        ({"row_width": 65_536, "num_rows": 16_384, "payload_size": 0}, FrameFault.LENGTH_MISMATCH),
        ({}, FrameFault.LENGTH_MISMATCH),
    ],
)
def test_each_bad_header_field_has_its_fault(changes: dict[str, int | bytes], fault: FrameFault) -> None:
    assert fault_of(header(**changes)) is fault


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    liars = [header(row_width=65_536, num_rows=128, payload_size=16 * 2**20), header(payload_size=U32_MAX)]
    tracemalloc.start()
    for data in liars * 50:
        fault_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_a_receivers_limits_hold() -> None:
    data = encode_frame(small_frame())
    assert decode_frame(data, FrameLimits(1, 4, 3, 24)).num_rows == 3
    assert fault_of(data, FrameLimits(max_row_width=3)) is FrameFault.BAD_SHAPE
    assert fault_of(data, FrameLimits(max_rows=2)) is FrameFault.BAD_SHAPE
    assert fault_of(data, FrameLimits(max_payload_bytes=23)) is FrameFault.TOO_LARGE
    two = replace(small_frame(), segments=(small_frame(1).segments[0], small_frame(2).segments[0]))
    assert fault_of(encode_frame(two), FrameLimits(max_segments=1)) is FrameFault.BAD_SHAPE


def segment_table(**changes: int) -> bytes:
    """A whole frame with one changed field in its segment, and a check sum that fits."""
    fields = {"epoch": 1, "position": 7, "num_tokens": 3, "seq": 2, "stage": 1, "phase": 2}
    fields |= {"compute_us": 0, "codec_us": 0, "reserved": 0} | changes
    table = SEGMENT.pack(bytes.fromhex(SESSION), *fields.values())
    return with_crc(header() + table + bytes(24))


@pytest.mark.parametrize(
    "changes",
    [{"num_tokens": 0}, {"num_tokens": 4}, {"num_tokens": U32_MAX}, {"phase": 0}, {"phase": 3}, {"reserved": 1}],
)
def test_a_segment_that_lies_is_refused(changes: dict[str, int]) -> None:
    assert decode_frame(segment_table()).num_rows == 3
    assert fault_of(segment_table(**changes)) is FrameFault.BAD_SEGMENT


def test_a_segment_without_rows_cannot_hide_behind_another() -> None:
    row = [bytes.fromhex(SESSION), 1, 0, 3, 0, 0, 1, 0, 0, 0]
    table = SEGMENT.pack(*row) + SEGMENT.pack(*row[:3], 0, *row[4:])
    assert fault_of(with_crc(header(num_segments=2) + table + bytes(24))) is FrameFault.BAD_SEGMENT


@pytest.mark.parametrize(
    "broken",
    [
        small_frame(payload=b""),
        small_frame(payload=bytes(23)),
        small_frame(segments=(), payload=b""),
        small_frame(row_width=0, payload=b""),
        small_frame(kind=FrameKind.TOKENS),
        small_frame(segments=(small_frame().segments[0]._replace(session_id=SessionId("abcd")),)),
        small_frame(segments=(small_frame().segments[0]._replace(session_id=SessionId("zz" * 16)),)),
        small_frame(segments=(small_frame().segments[0]._replace(epoch=2**32),)),
        small_frame(segments=(small_frame().segments[0]._replace(position=-1),)),
        small_frame(segments=(small_frame(4).segments[0], small_frame().segments[0]._replace(num_tokens=-1))),
    ],
)
def test_what_every_receiver_would_refuse_is_not_sent(broken: Frame) -> None:
    with pytest.raises(FrameError):
        encode_frame(broken)


def test_a_frame_may_be_read_from_any_kind_of_buffer() -> None:
    data = encode_frame(small_frame())
    for buffer in (bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert bytes(decode_frame(buffer).payload) == bytes(range(24))


# ---------------------------------------------------------------- probes


def test_a_probe_comes_back_as_it_was_and_is_of_no_session() -> None:
    frame = decode_frame(probe_frame(bytes(range(200))))
    assert (frame.kind, bytes(frame.payload), frame.num_rows) == (FrameKind.PROBE, bytes(range(200)), 100)
    assert frame.segments[0].session_id == "0" * 32


def test_a_probe_is_told_from_rows_by_its_first_bytes() -> None:
    assert is_probe(probe_frame(bytes(64)))
    assert not is_probe(encode_frame(small_frame()))
    for data in (b"", b"DLLM", b"DLLM\x01", b"XLLM\x01\x03", bytes(100)):
        assert not is_probe(data)


def test_the_largest_probe_is_taken_and_a_larger_one_by_nobody() -> None:
    assert decode_frame(probe_frame(bytes(MAX_PROBE_BYTES))).kind is FrameKind.PROBE
    with pytest.raises(FrameError, match="limit 32768"):
        probe_frame(bytes(MAX_PROBE_BYTES + 2))
    segment = Segment(SESSION, 0, 0, MAX_PROBE_BYTES // 2 + 1, 0, 0, Phase.PREFILL)
    larger = Frame(FrameKind.PROBE, WireDtype.FLOAT16, 1, (segment,), bytes(MAX_PROBE_BYTES + 2))
    with pytest.raises(FrameError) as caught:
        decode_frame(encode_frame(larger), FrameLimits())
    assert caught.value.code in (FrameFault.TOO_LARGE, FrameFault.BAD_SHAPE)


@given(frames())
def test_segments_are_read_without_a_look_at_the_payload(frame: Frame) -> None:
    data = encode_frame(frame)
    assert segments_of(data) == frame.segments
    assert segments_of(data[: HEADER.size + SEGMENT.size * len(frame.segments)]) == frame.segments


@given(st.binary(max_size=200))
def test_segments_of_random_bytes_are_a_frame_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        segments_of(data)
