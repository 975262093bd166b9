"""Which frames pass, where they go, and what is refused and counted."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from client.agent.switch import Delivery, Gap, Shape, Switch
from client.ipc import EndSession, IpcError
from protocol.frames import FrameLimits, WireDtype, decode_frame
from protocol.messages import OpenSession, RowsAt, WhereAreRows
from protocol.values import Hop, NodeId
from tests.client.agent.samples import (
    CPU,
    GPU,
    GPU_1,
    HIDDEN_SIZE,
    LEFT,
    NODE,
    OTHER_SESSION,
    RIGHT,
    SESSION,
    open_session,
    rows,
    segment,
    tokens,
)

SHAPE = Shape(HIDDEN_SIZE, WireDtype.FLOAT32)
NOTHING: tuple[list[Delivery], list[Gap]] = ([], [])


def switch_with(*messages: OpenSession) -> Switch:
    switch = Switch(NODE)
    for message in messages:
        switch.open(message, SHAPE)
        switch.validate()
    return switch


# ---------------------------------------------------------------- frames that pass


def test_a_frame_in_order_is_delivered_as_it_came() -> None:
    switch = switch_with(open_session())
    for position, num_tokens in ((0, 4), (4, 1), (5, 1)):
        frame = rows(segment(position=position, num_tokens=num_tokens))
        assert switch.admit(frame, LEFT) == ([Delivery(CPU.device_id, frame)], [])
    assert switch.num_refused == 0


def test_a_head_takes_tokens_from_the_coordinator_and_from_its_tail() -> None:
    switch = switch_with(open_session(stage=0, previous=RIGHT))
    for position, sender in ((0, None), (1, RIGHT)):
        deliveries, _ = switch.admit(tokens(segment(position=position, stage=0)), sender)
        assert len(deliveries) == 1


def test_a_frame_for_two_devices_is_split_with_each_its_rows_in_order() -> None:
    switch = switch_with(open_session(device=GPU), open_session(OTHER_SESSION, device=GPU_1))
    parts = (segment(num_tokens=2), segment(OTHER_SESSION, num_tokens=1), segment(position=2))
    deliveries, gaps = switch.admit(rows(*parts), LEFT)
    assert gaps == []
    first, second = (decode_frame(delivery.frame) for delivery in deliveries)
    assert [delivery.device_id for delivery in deliveries] == [GPU.device_id, GPU_1.device_id]
    assert (first.segments, second.segments) == ((parts[0], parts[2]), (parts[1],))
    row = HIDDEN_SIZE * 4
    assert bytes(first.payload) == bytes([0]) * row + bytes([1]) * row + bytes([3]) * row
    assert bytes(second.payload) == bytes([2]) * row


def test_good_segments_pass_beside_a_bad_one() -> None:
    switch = switch_with(open_session())
    deliveries, gaps = switch.admit(rows(segment(OTHER_SESSION), segment()), LEFT)
    assert [decode_frame(delivery.frame).segments for delivery in deliveries] == [(segment(),)]
    assert (switch.num_refused, gaps) == (1, [])


def test_two_stages_of_a_session_on_one_node_are_told_apart() -> None:
    switch = switch_with(
        open_session(stage=1, device=GPU, following=Hop(NODE, 2)), open_session(stage=2, device=GPU_1, previous=NODE)
    )
    first, second = rows(segment(stage=1)), rows(segment(stage=2))
    assert switch.admit(first, LEFT) == ([Delivery(GPU.device_id, first)], [])
    assert switch.admit(second, NODE) == ([Delivery(GPU_1.device_id, second)], [])
    assert switch.num_sessions == 1


def test_a_single_stage_session_has_no_next_link() -> None:
    start = Switch(NODE).open(open_session(stage=0, num_stages=1, following=Hop(NODE, 0)), SHAPE)
    assert start.next_link is None


# ---------------------------------------------------------------- frames that do not


@pytest.mark.parametrize("data", [b"", b"DLLM", b"x" * 100, rows(segment())[:-1], rows(segment()) + b"x"])
def test_what_is_no_frame_is_refused_and_counted(data: bytes) -> None:
    switch = switch_with(open_session())
    assert switch.admit(data, LEFT) == NOTHING
    assert switch.num_refused == 1


def test_a_frame_over_the_limits_is_refused() -> None:
    switch = Switch(NODE, FrameLimits(max_rows=3))
    switch.open(open_session(), SHAPE)
    assert switch.admit(rows(segment(num_tokens=4)), LEFT) == NOTHING
    assert switch.num_refused == 1


BAD_FRAMES = {
    "unknown session": rows(segment(OTHER_SESSION)),
    "another stage": rows(segment(stage=2)),
    "an older epoch": rows(segment(epoch=1)),
    "a newer epoch": rows(segment(epoch=3)),
    "tokens for a middle stage": tokens(segment(epoch=2)),
    "rows too narrow": rows(segment(epoch=2), row_width=HIDDEN_SIZE - 1),
    "another dtype": rows(segment(epoch=2), dtype=WireDtype.BFLOAT16),
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_frame_that_does_not_belong_is_refused_and_the_session_goes_on(frame: bytes) -> None:
    switch = switch_with(open_session(epoch=2))
    assert switch.admit(frame, LEFT) == NOTHING
    assert switch.num_refused == 1
    assert len(switch.admit(rows(segment(epoch=2)), LEFT)[0]) == 1


def test_hidden_rows_for_a_head_are_refused() -> None:
    switch = switch_with(open_session(stage=0))
    assert switch.admit(rows(segment(stage=0)), None) == NOTHING


def test_a_frame_from_another_node_than_the_neighbour_is_refused() -> None:
    switch = switch_with(open_session())
    assert switch.admit(rows(segment()), RIGHT) == NOTHING
    assert switch.num_refused == 1


def test_a_duplicate_is_dropped_and_counted_without_a_gap() -> None:
    switch = switch_with(open_session())
    frame = rows(segment(num_tokens=3))
    switch.admit(frame, LEFT)
    assert switch.admit(frame, LEFT) == NOTHING
    assert switch.num_refused == 1
    assert len(switch.admit(rows(segment(position=3)), LEFT)[0]) == 1


def test_a_duplicate_within_one_frame_is_dropped() -> None:
    switch = switch_with(open_session())
    deliveries, _ = switch.admit(rows(segment(), segment()), LEFT)
    assert decode_frame(deliveries[0].frame).segments == (segment(),)


def test_lost_rows_are_reported_once_and_every_later_frame_is_refused() -> None:
    switch = switch_with(open_session())
    assert switch.admit(rows(segment(position=5)), LEFT) == ([], [Gap(SESSION, 1, 1)])
    assert switch.admit(rows(segment(position=6)), LEFT) == NOTHING
    assert switch.num_refused == 2


def test_a_new_epoch_starts_at_the_first_position_and_forgets_the_gap() -> None:
    switch = switch_with(open_session())
    switch.admit(rows(segment(position=5)), LEFT)
    switch.open(open_session(epoch=2), SHAPE)
    assert len(switch.admit(rows(segment(epoch=2)), LEFT)[0]) == 1
    assert switch.admit(rows(segment(position=9, epoch=2)), LEFT)[1] == [Gap(SESSION, 2, 1)]


_parts = st.builds(
    segment,
    session_id=st.sampled_from([SESSION, OTHER_SESSION]),
    position=st.integers(0, 5),
    num_tokens=st.integers(1, 3),
    epoch=st.integers(1, 2),
    stage=st.integers(1, 2),
)


@given(st.lists(st.lists(_parts, min_size=1, max_size=4), max_size=8))
def test_each_row_is_delivered_at_most_once_and_in_order(frames: list[list[object]]) -> None:
    switch = switch_with(open_session(device=GPU), open_session(OTHER_SESSION, device=GPU_1))
    positions: dict[tuple[object, ...], int] = {}
    for parts in frames:
        for delivery in switch.admit(rows(*parts), LEFT)[0]:  # type: ignore[arg-type]
            for part in decode_frame(delivery.frame).segments:
                key = (part.session_id, part.epoch, part.stage)
                assert positions.get(key, 0) == part.position
                positions[key] = part.position + part.num_tokens


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    assert switch_with(open_session()).admit(data, LEFT)[0] == []


# ---------------------------------------------------------------- sessions


def test_closing_ends_every_stage_up_to_that_epoch() -> None:
    switch = switch_with(open_session(stage=1, device=GPU), open_session(stage=2, device=GPU_1, epoch=2))
    assert switch.close(SESSION, 1) == [(GPU.device_id, EndSession(SESSION, 1))]
    assert switch.close(SESSION, 2) == [(GPU_1.device_id, EndSession(SESSION, 2))]
    assert switch.close(SESSION, 9) == []
    assert switch.num_sessions == 0
    switch.validate()


def test_closing_all_of_a_device_leaves_the_others() -> None:
    switch = switch_with(open_session(device=GPU), open_session(OTHER_SESSION, device=GPU_1))
    assert switch.close_all(GPU.device_id) == [(GPU.device_id, EndSession(SESSION, 1))]
    assert switch.devices == {GPU_1.device_id}
    assert len(switch.close_all()) == 1
    switch.validate()


def test_a_leg_is_found_by_session_epoch_and_device_only() -> None:
    switch = switch_with(open_session(epoch=2, device=GPU))
    assert switch.leg(SESSION, 2, GPU.device_id) is not None
    assert switch.leg(SESSION, 1, GPU.device_id) is None
    assert switch.leg(SESSION, 2, GPU_1.device_id) is None
    assert switch.leg(OTHER_SESSION, 2, GPU.device_id) is None


def test_a_stage_that_moved_to_another_device_is_its_stage_and_the_older_one_waits_to_be_closed() -> None:
    switch = switch_with(open_session(device=GPU), open_session(epoch=2, device=GPU_1))
    [delivery], _ = switch.admit(rows(segment(epoch=2)), LEFT)
    assert delivery.device_id == GPU_1.device_id
    assert switch.admit(rows(segment(epoch=1, position=0)), LEFT) == NOTHING
    assert switch.close(SESSION, 1) == [(GPU.device_id, EndSession(SESSION, 1))]
    assert switch.devices == {GPU_1.device_id}


def test_a_device_that_has_another_stage_in_the_next_epoch_has_one_leg() -> None:
    """A stage before it was split: both devices of this node moved on by one."""
    switch = switch_with(open_session(stage=1, device=GPU), open_session(stage=2, device=GPU_1))
    for stage, device in ((3, GPU_1), (2, GPU)):
        switch.open(open_session(stage=stage, device=device, epoch=2), SHAPE)
    assert switch.admit(rows(segment(epoch=2, stage=1)), LEFT) == NOTHING
    [delivery], _ = switch.admit(rows(segment(epoch=2, stage=2)), LEFT)
    assert delivery.device_id == GPU.device_id
    assert switch.close(SESSION, 1) == []


def test_a_stage_that_keeps_rows_takes_the_ones_after_them() -> None:
    order = structs.replace(open_session(epoch=2), num_kept_tokens=7, next_from=3)
    switch = switch_with(open_session(), order)
    start = switch.open(order, SHAPE)
    assert (start.num_kept_tokens, start.next_from) == (7, 3)
    for epoch, position in ((1, 0), (1, 7), (2, 0), (2, 6)):
        assert switch.admit(rows(segment(epoch=epoch, position=position)), LEFT) == NOTHING
    deliveries, _ = switch.admit(rows(segment(epoch=2, position=7)), LEFT)
    assert len(deliveries) == 1


# ---------------------------------------------------------------- links


def test_neighbours_are_numbered_and_one_neighbour_has_one_link() -> None:
    switch = Switch(NODE)
    right, left = Hop(RIGHT, 2, "ws://r:1"), Hop(LEFT, 2, "ws://l:1")
    links = [
        switch.open(open_session(f"{number:032x}", following=hop), SHAPE).next_link
        for number, hop in enumerate((right, left, right))
    ]
    assert links == [0, 1, 0]
    assert (switch.neighbour(0), switch.neighbour(1)) == (right, left)


def test_a_neighbour_that_came_back_elsewhere_is_reached_there() -> None:
    switch = switch_with(open_session(following=Hop(RIGHT, 2, "ws://old:1")))
    switch.open(open_session(OTHER_SESSION, following=Hop(RIGHT, 2, "ws://new:2", "ticket")), SHAPE)
    assert switch.neighbour(0) == Hop(RIGHT, 2, "ws://new:2", "ticket")


def test_a_link_that_was_never_given_is_an_ipc_error() -> None:
    with pytest.raises(IpcError, match="link 1 of 1"):
        switch_with(open_session()).neighbour(1)


def test_legs_towards_a_neighbour_are_those_whose_rows_go_there() -> None:
    switch = switch_with(open_session(), open_session(OTHER_SESSION, following=Hop(LEFT, 2)))
    assert [session_id for session_id, _ in switch.legs_towards(RIGHT)] == [SESSION]
    assert switch.legs_towards(NodeId("e" * 32)) == []


# ---------------------------------------------------------------- where rows are


def asked(stage: int = 1, epoch: int = 1) -> WhereAreRows:
    return WhereAreRows(SESSION, epoch, stage)


def test_a_stage_says_what_came_in_what_went_on_and_for_how_long_the_rest_has_been_here() -> None:
    switch = switch_with(open_session())
    switch.admit(rows(segment(num_tokens=4)), LEFT, 10.0)
    assert switch.where(asked(), 12.0) == RowsAt(SESSION, 1, 1, 4, 0, 2.0)
    switch.passed_on(CPU.device_id, rows(segment(num_tokens=4, stage=2)), 13.0)
    assert switch.where(asked(), 20.0) == RowsAt(SESSION, 1, 1, 4, 4, 0.0)


def test_a_tail_owes_a_token_once_it_has_the_whole_prompt() -> None:
    switch = switch_with(open_session(stage=2))
    switch.admit(rows(segment(num_tokens=3, stage=2)), LEFT, 0.0)
    assert switch.where(asked(2), 9.0) == RowsAt(SESSION, 1, 2, 3, 0, 0.0)
    switch.admit(rows(segment(position=3, stage=2)), LEFT, 10.0)
    assert switch.where(asked(2), 11.0) == RowsAt(SESSION, 1, 2, 4, 0, 1.0)
    switch.passed_on(CPU.device_id, tokens(segment(position=4, stage=0)), 12.0)
    assert switch.where(asked(2), 20.0) == RowsAt(SESSION, 1, 2, 4, 5, 0.0)


def test_rows_that_were_refused_did_not_come_in() -> None:
    switch = switch_with(open_session())
    switch.admit(rows(segment(position=3)), LEFT, 0.0)
    switch.admit(rows(segment()), RIGHT, 0.0)
    assert switch.where(asked(), 5.0) == RowsAt(SESSION, 1, 1, 0, 0, 0.0)


def test_what_the_next_stage_holds_already_counts_as_sent() -> None:
    switch = switch_with(msgspec.structs.replace(open_session(), num_kept_tokens=3, next_from=2))
    answer = switch.where(asked(), 5.0)
    assert answer is not None
    assert (answer.num_sent, answer.waiting_s) == (2, 0.0)


def test_of_two_sessions_in_a_frame_each_has_gone_on_as_far_as_its_own_rows() -> None:
    switch = switch_with(open_session(), open_session(OTHER_SESSION))
    switch.passed_on(CPU.device_id, rows(segment(num_tokens=3, stage=2), segment(OTHER_SESSION, stage=2)), 0.0)
    sent = [switch.where(WhereAreRows(name, 1, 1), 0.0) for name in (SESSION, OTHER_SESSION)]
    assert [answer.num_sent for answer in sent if answer] == [3, 1]


def test_late_rows_of_an_older_epoch_or_of_another_device_say_nothing() -> None:
    switch = switch_with(open_session(epoch=2))
    switch.passed_on(CPU.device_id, rows(segment(num_tokens=3, stage=2, epoch=1)), 0.0)
    switch.passed_on(GPU.device_id, rows(segment(num_tokens=3, stage=2, epoch=2)), 0.0)
    assert switch.where(asked(epoch=2), 0.0) == RowsAt(SESSION, 2, 1, 0, 0, 0.0)


@pytest.mark.parametrize(("stage", "epoch"), [(0, 1), (1, 2), (1, 0)])
def test_of_a_stage_or_an_epoch_that_is_not_here_nothing_is_known(stage: int, epoch: int) -> None:
    assert switch_with(open_session()).where(asked(stage, epoch), 0.0) is None


@pytest.mark.parametrize("data", [b"", b"DLLM", bytes(100), rows(segment())[:50]])
def test_a_worker_that_sends_no_frames_is_of_another_build(data: bytes) -> None:
    with pytest.raises(IpcError):
        switch_with(open_session()).passed_on(CPU.device_id, data, 0.0)


# ---------------------------------------------------------------- rows that a worker has from its cache


NAMES = tuple(f"{number:032x}" for number in range(3))


def cached_leg(num_cached: int) -> Switch:
    switch = switch_with(open_session())
    leg = switch.leg(SESSION, 1, CPU.device_id)
    assert leg is not None
    leg.num_cached = num_cached
    return switch


@pytest.mark.parametrize("position", [0, 16, 32])
def test_the_first_row_may_lie_behind_any_block_that_the_worker_has(position: int) -> None:
    switch = cached_leg(32)
    deliveries, gaps = switch.admit(rows(segment(position=position)), LEFT)
    assert (len(deliveries), gaps) == (1, [])
    again, gaps = switch.admit(rows(segment(position=0)), LEFT)
    assert (again, gaps) == ([], []), "only the first"


@pytest.mark.parametrize(("num_cached", "position"), [(32, 8), (32, 48), (32, 33), (0, 16)])
def test_behind_what_the_worker_has_rows_were_lost(num_cached: int, position: int) -> None:
    deliveries, gaps = cached_leg(num_cached).admit(rows(segment(position=position)), LEFT)
    assert (len(deliveries), len(gaps)) == (0, 1)


def test_names_of_blocks_are_passed_on_to_the_worker() -> None:
    switch = Switch(NODE)
    order = structs.replace(open_session(), prefix_hashes=NAMES)
    assert switch.open(order, SHAPE).prefix_hashes == NAMES
    assert switch.close(SESSION, 1, NAMES) == [(CPU.device_id, EndSession(SESSION, 1, NAMES))]
    switch.open(order, SHAPE)
    assert switch.close(SESSION, 2, NAMES) == [(CPU.device_id, EndSession(SESSION, 1))], "of a later epoch"
