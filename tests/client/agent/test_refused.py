"""Rows for which there was no room: whose sessions break."""

from __future__ import annotations

from client.agent.events import RowsRefused
from client.agent.refused import broken_by
from client.agent.switch import Shape, Switch
from protocol.frames import WireDtype
from protocol.values import Hop
from tests.client.agent.samples import (
    GPU,
    HIDDEN_SIZE,
    NODE,
    OTHER_SESSION,
    RIGHT,
    SESSION,
    open_session,
    rows,
    segment,
)

SHAPE = Shape(HIDDEN_SIZE, WireDtype.FLOAT32)


def switch() -> Switch:
    """Stage 1 of two sessions."""
    table = Switch(NODE)
    for session_id in (SESSION, OTHER_SESSION):
        table.open(open_session(session_id), SHAPE)
    return table


def test_rows_on_the_way_out_break_the_sessions_that_they_are_of() -> None:
    data = rows(segment(SESSION, stage=2), segment(OTHER_SESSION, stage=2))
    broken = broken_by(switch(), RowsRefused(data, is_leaving=True))
    assert {(b.session_id, b.epoch, b.stage, b.code) for b in broken} == {
        (SESSION, 1, 1, "link_full"),
        (OTHER_SESSION, 1, 1, "link_full"),
    }


def test_rows_on_the_way_in_break_their_session_once_however_many_segments_there_are() -> None:
    data = rows(segment(SESSION), segment(SESSION, position=1))
    [broken] = broken_by(switch(), RowsRefused(data, is_leaving=False))
    assert (broken.session_id, broken.stage, broken.code) == (SESSION, 1, "device_full")


def test_rows_of_an_older_epoch_or_of_nobody_break_nothing() -> None:
    data = rows(segment(SESSION, epoch=9), segment(OTHER_SESSION, stage=5))
    assert broken_by(switch(), RowsRefused(data, is_leaving=False)) == []
    assert broken_by(Switch(NODE), RowsRefused(rows(segment(SESSION)), is_leaving=True)) == []


def test_of_a_node_with_two_stages_the_one_whose_rows_they_were_breaks() -> None:
    table = Switch(NODE)
    table.open(open_session(stage=1, following=Hop(NODE, 2)), SHAPE)
    table.open(open_session(stage=2, device=GPU, previous=NODE, following=Hop(RIGHT, 3)), SHAPE)
    [out] = broken_by(table, RowsRefused(rows(segment(stage=3)), is_leaving=True))
    [into] = broken_by(table, RowsRefused(rows(segment(stage=1)), is_leaving=False))
    assert (out.stage, into.stage) == (2, 1)
