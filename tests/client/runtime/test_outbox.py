"""Grouping rows for neighbours: one frame per link, split only when no receiver would take it."""

import pytest
import torch

from client.ipc import StartSession
from client.runtime import outbox
from client.runtime.kv_cache import KvTable
from client.runtime.outbox import LinkGroups
from client.runtime.sessions import Rows, Session
from client.runtime.wire import from_payload
from protocol.frames import Frame, FrameKind, FrameLimits, decode_frame, encode_frame
from protocol.values import StepTiming


def session(number: int, link: int) -> Session:
    start = StartSession(f"{number:032x}", 1, 0, 2, 8, 64, next_link=link, next_stage=1)
    return Session(start, KvTable([number]))


def rows(position: int, number: int) -> Rows:
    return Rows(position, torch.randn(number, 4), StepTiming(3, 4))


def test_rows_for_one_neighbour_share_a_frame() -> None:
    groups = LinkGroups(FrameKind.HIDDEN)
    parts = [rows(0, 3), rows(8, 1), rows(4, 2)]
    for number, (link, part) in enumerate(zip((5, 6, 5), parts, strict=True)):
        groups.add(session(number, link), part)
    frames = dict(groups.frames())
    assert [len(frame.segments) for frame in (frames[5], frames[6])] == [2, 1]
    assert torch.equal(from_payload(frames[5]), torch.cat([parts[0].values, parts[2].values]))
    assert (frames[5].segments[1].position, frames[5].segments[1].compute_us) == (4, 3)


def test_what_is_more_than_a_receiver_takes_is_split_without_losing_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LIMITS", FrameLimits(max_segments=2, max_rows=100, max_payload_bytes=5 * 16))
    groups = LinkGroups(FrameKind.HIDDEN)
    owners = [session(number, 5) for number in range(4)]
    parts = [rows(0, 7), rows(0, 1), rows(0, 1), rows(0, 1)]
    for owner, part in zip(owners, parts, strict=True):
        groups.add(owner, part)
    frames = [decode_frame(encode_frame(frame), outbox.LIMITS) for _, frame in groups.frames()]
    assert torch.equal(torch.cat([from_payload(frame) for frame in frames]), torch.cat([p.values for p in parts]))
    assert _pieces(frames, owners[0]) == [(0, 5, 0), (5, 2, 1)]


def _pieces(frames: list[Frame], owner: Session) -> list[tuple[int, int, int]]:
    """(position, rows, seq) of a session's segments."""
    segments = [segment for frame in frames for segment in frame.segments if segment.session_id == owner.session_id]
    return [(segment.position, segment.num_tokens, segment.seq) for segment in segments]
