"""Frames in pieces: the same rows, in the same order, at the same positions."""

from __future__ import annotations

import random

import pytest

from protocol.errors import FrameError
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, decode_frame, encode_frame
from protocol.pieces import MAX_PIECE_BYTES, pieces_of
from protocol.values import SessionId

WIDTH = 8
ROW_BYTES = WIDTH * 4


def frame(*num_rows: int, seed: int = 0) -> bytes:
    """One segment for each number of rows."""
    segments = tuple(
        Segment(SessionId(f"{number:032x}"), 3, 100 * number, rows, 7, 1, Phase.PREFILL, 11, 12)
        for number, rows in enumerate(num_rows)
    )
    payload = random.Random(seed).randbytes(sum(num_rows) * ROW_BYTES)
    return encode_frame(Frame(FrameKind.HIDDEN, WireDtype.FLOAT32, WIDTH, segments, payload))


def rows_of(frames: list[bytes]) -> dict[tuple[str, int], bytes]:
    """Every row by session and position; each once."""
    rows: dict[tuple[str, int], bytes] = {}
    for decoded in map(decode_frame, frames):
        start = 0
        for segment in decoded.segments:
            for number in range(segment.num_tokens):
                key = segment.session_id, segment.position + number
                assert key not in rows
                rows[key] = bytes(decoded.payload[start : start + ROW_BYTES])
                start += ROW_BYTES
    return rows


@pytest.mark.parametrize("num_rows", [(1,), (5,), (64,), (1, 1, 1, 40), (3, 17, 2, 9), (40, 1), (1,) * 30])
@pytest.mark.parametrize("max_rows", [1, 2, 7, 16])
def test_the_pieces_hold_what_the_frame_held(num_rows: tuple[int, ...], max_rows: int) -> None:
    data = frame(*num_rows)
    pieces = pieces_of(data, max_rows * ROW_BYTES)
    assert rows_of(pieces) == rows_of([data])
    assert list(rows_of(pieces)) == list(rows_of([data]))
    if len(pieces) > 1:
        assert all(decode_frame(piece).num_rows <= max_rows for piece in pieces)


def test_everything_else_of_a_segment_stays() -> None:
    for piece in pieces_of(frame(20), 6 * ROW_BYTES):
        [segment] = decode_frame(piece).segments
        assert segment._replace(position=0, num_tokens=20) == decode_frame(frame(20)).segments[0]


def test_a_small_frame_is_left_as_it_is() -> None:
    data = frame(4)
    assert pieces_of(data) == [data]
    assert pieces_of(b"anything") == [b"anything"]


def test_a_row_that_is_larger_than_a_piece_goes_alone() -> None:
    assert [decode_frame(piece).num_rows for piece in pieces_of(frame(3), ROW_BYTES // 2)] == [1, 1, 1]


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(FrameError):
        pieces_of(bytes(MAX_PIECE_BYTES + 1))
