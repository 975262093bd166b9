"""What a step sends: rows grouped by neighbour, one frame per neighbour as long as they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch

from client.ipc import WorkerMessage
from client.runtime.sessions import Rows, Session
from client.runtime.wire import WIRE_DTYPES, to_payload
from protocol.frames import Frame, FrameKind, FrameLimits

LIMITS = FrameLimits()


class Outbox(Protocol):
    """Where messages and frames go: the channel, or a list in a test."""

    def send_message(self, message: WorkerMessage) -> None:
        """To the agent."""

    def send_frame(self, link: int, frame: Frame) -> None:
        """To the neighbour that the agent knows by this number."""


class LinkGroups:
    """Rows of many sessions, gathered by the link they leave on."""

    def __init__(self, kind: FrameKind) -> None:
        self._kind = kind
        self._groups: dict[int, list[tuple[Session, Rows]]] = {}

    def add(self, session: Session, rows: Rows) -> None:
        """`rows.values`: [n, row width] in the dtype of the wire."""
        assert session.start.next_link is not None
        self._groups.setdefault(session.start.next_link, []).append((session, rows))

    def frames(self) -> Iterator[tuple[int, Frame]]:
        """(link, frame): one per link, or several if the rows are more than a receiver takes at once."""
        for link, entries in self._groups.items():
            width = entries[0][1].values.shape[1]
            row_bytes = width * entries[0][1].values.element_size()
            max_rows = min(LIMITS.max_rows, LIMITS.max_payload_bytes // row_bytes)
            for part in _split(entries, max_rows):
                yield link, self._frame(part)

    def _frame(self, entries: list[tuple[Session, Rows]]) -> Frame:
        values = torch.cat([rows.values for _, rows in entries]) if len(entries) > 1 else entries[0][1].values
        segments = tuple(session.segment(rows) for session, rows in entries)
        return Frame(self._kind, WIRE_DTYPES[values.dtype], values.shape[1], segments, to_payload(values))


def _split(entries: list[tuple[Session, Rows]], max_rows: int) -> Iterator[list[tuple[Session, Rows]]]:
    part: list[tuple[Session, Rows]] = []
    room = max_rows
    for session, rows in entries:
        rest = rows
        while len(rest):
            if not room or len(part) == LIMITS.max_segments:
                yield part
                part, room = [], max_rows
            part.append((session, replace(rest, values=rest.values[:room])))
            taken = len(part[-1][1])
            room -= taken
            rest = replace(rest, position=rest.position + taken, values=rest.values[taken:])
    if part:
        yield part
