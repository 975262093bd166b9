"""Data frames cut into smaller ones, for a connection that other things have to travel on as well."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.frames import Frame, Segment, decode_frame, encode_frame

MAX_PIECE_BYTES = 256 * 2**10
"""Payload of one piece. A heartbeat behind it waits for two seconds on a line of one megabit per second, which is half
of a lease; the largest frame would be 16 MiB."""


def pieces_of(data: bytes, max_bytes: int = MAX_PIECE_BYTES) -> list[bytes]:
    """The frame as frames of at most so many bytes of payload each, or of one row; a small one is left as it is.

    Raises FrameError for what is no frame, if it is not small."""
    if len(data) <= max_bytes:
        return [data]
    frame = decode_frame(data)
    row_bytes = frame.row_width * frame.dtype.itemsize
    return [encode_frame(part) for part in _parts(frame, row_bytes, max(1, max_bytes // row_bytes))]


def _parts(frame: Frame, row_bytes: int, max_rows: int) -> Iterator[Frame]:
    payload, first_row = memoryview(frame.payload), 0
    for segments in _groups(frame.segments, max_rows):
        stop_row = first_row + sum(segment.num_tokens for segment in segments)
        rows = payload[first_row * row_bytes : stop_row * row_bytes]
        yield Frame(frame.kind, frame.dtype, frame.row_width, segments, rows)
        first_row = stop_row


def _groups(segments: tuple[Segment, ...], max_rows: int) -> Iterator[tuple[Segment, ...]]:
    """The segments in order, as groups of at most so many rows; a longer segment is cut."""
    group: list[Segment] = []
    room = max_rows
    for segment in segments:
        rest = segment
        while rest.num_tokens:
            taken = min(rest.num_tokens, room)
            group.append(rest._replace(num_tokens=taken))
            rest = rest._replace(position=rest.position + taken, num_tokens=rest.num_tokens - taken)
            room -= taken
            if not room:
                yield tuple(group)
                group, room = [], max_rows
    if group:
        yield tuple(group)
