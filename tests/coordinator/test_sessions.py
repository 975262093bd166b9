"""One generation as a state machine: what happened in, actions out."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from coordinator.affinity import prefix_hashes
from coordinator.openings import first_row
from coordinator.scheduler.commands import ChainStage
from coordinator.sessions import (
    MAX_BREAKS,
    TRANSITIONS,
    Action,
    Contact,
    Deliver,
    Failed,
    NeedChain,
    Order,
    Rerouted,
    SendFrame,
    SendMessage,
    Session,
    SessionSignal,
    SessionState,
    WantMove,
)
from protocol.frames import FrameKind, Phase, Segment, decode_frame
from protocol.messages import CloseSession, OpenSession, TokensSampled
from protocol.values import FinishReason, LayerRange, Sampling, StopRule
from tests.fakes import pool_facts as facts

ORDER = Order(facts.session_id(1), facts.DIGEST, (5, 6, 7), 4, Sampling(0.5, seed=9), (2,))
HEAD, MIDDLE, TAIL = (facts.node_id(number) for number in (1, 2, 3))
CHAIN = tuple(
    ChainStage(facts.key(number), 10 + number, LayerRange(2 * number - 2, 2 * number)) for number in (1, 2, 3)
)
SPARE = (ChainStage(facts.key(4), 1, LayerRange(0, 6)),)


def opened() -> Session:
    """A session that runs over three stages, with no token yet."""
    session = Session(ORDER)
    session.start(CHAIN, {})
    for stage, node_id in enumerate((HEAD, MIDDLE, TAIL)):
        session.stage_opened(node_id, 1, stage)
    assert session.state is SessionState.RUNNING
    return session


def sampled(*tokens: int, position: int = 3, epoch: int = 1, finish: FinishReason | None = None) -> TokensSampled:
    return TokensSampled(ORDER.session_id, epoch, position, tokens, finish_reason=finish)


def opens(actions: list[Action]) -> list[OpenSession]:
    return [a.message for a in actions if isinstance(a, SendMessage) and isinstance(a.message, OpenSession)]


def closed_nodes(actions: list[Action]) -> list[str]:
    return [a.node_id for a in actions if isinstance(a, SendMessage) and isinstance(a.message, CloseSession)]


# ---------------------------------------------------------------- the table


def test_every_state_but_the_last_can_end() -> None:
    assert {s for s, signal in TRANSITIONS if signal is SessionSignal.END} == set(SessionState) - {SessionState.ENDED}


def test_nothing_follows_the_end() -> None:
    session = Session(ORDER)
    assert session.end() == []
    for step in (session.end, lambda: session.start(CHAIN, {})):
        with pytest.raises(KeyError):
            step()


# ---------------------------------------------------------------- opening


def test_a_chain_is_opened_tail_first_and_the_user_learns_it() -> None:
    actions = Session(ORDER).start(CHAIN, {MIDDLE: Contact("ws://m", "t")})
    assert actions[0] == Rerouted(ORDER.session_id, CHAIN, 1)
    assert [order.stage for order in opens(actions)] == [2, 1, 0]
    tail, middle, head = opens(actions)
    assert (head.previous.node_id, head.next.node_id) == (TAIL, MIDDLE)
    assert (head.next.address, head.next.ticket, head.next.stage) == ("ws://m", "t", 1)
    assert (middle.previous.node_id, middle.next.node_id) == (HEAD, TAIL)
    assert (tail.previous.node_id, tail.next.node_id, tail.next.stage) == (MIDDLE, HEAD, 0)
    assert middle.previous.address is None
    assert [order.generation for order in (head, middle, tail)] == [11, 12, 13]


def test_only_the_tail_learns_how_to_sample_and_what_was_said() -> None:
    tail, *others = opens(Session(ORDER).start(CHAIN, {}))
    assert (tail.sampling, tail.stop, tail.history) == (ORDER.sampling, StopRule(7, (2,)), (5, 6, 7))
    assert all((o.sampling, o.stop, o.history) == (None, None, ()) for o in others)
    assert all((o.num_prompt_tokens, o.num_reserved_tokens, o.num_stages) == (3, 7, 3) for o in (tail, *others))


def test_one_stage_is_head_and_tail() -> None:
    [order] = opens(Session(ORDER).start(SPARE, {}))
    assert order.previous.node_id == order.next.node_id == facts.node_id(4)
    assert (order.stage, order.next.stage, order.previous.stage) == (0, 0, 0)
    assert order.sampling is not None


def test_the_prompt_leaves_only_when_every_stage_is_open() -> None:
    session = Session(ORDER)
    session.start(CHAIN, {})
    assert session.stage_opened(TAIL, 1, 2) == []
    assert session.stage_opened(HEAD, 1, 0) == []
    assert session.stage_opened(HEAD, 1, 0) == []
    [action] = session.stage_opened(MIDDLE, 1, 1)
    assert isinstance(action, SendFrame)
    assert action.node_id == HEAD
    frame = decode_frame(action.frame)
    assert frame.kind is FrameKind.TOKENS
    assert frame.segments == (Segment(ORDER.session_id, 1, 0, 3, 0, 0, Phase.PREFILL),)
    assert struct.unpack("<3i", frame.payload) == (5, 6, 7)
    assert session.stage_opened(MIDDLE, 1, 1) == []


@pytest.mark.parametrize(("node_id", "epoch", "stage"), [(TAIL, 0, 2), (TAIL, 2, 2), (HEAD, 1, 2), (TAIL, 1, 3)])
def test_opened_by_somebody_else_or_in_another_epoch_does_not_count(node_id: str, epoch: int, stage: int) -> None:
    session = Session(ORDER)
    session.start(CHAIN, {})
    session.stage_opened(HEAD, 1, 0)
    session.stage_opened(MIDDLE, 1, 1)
    assert session.stage_opened(node_id, epoch, stage) == []  # type: ignore[arg-type]
    assert session.state is SessionState.OPENING


def test_the_head_gets_the_prompt_without_being_waited_for() -> None:
    session = Session(ORDER)
    session.start(CHAIN, {})
    assert session.stage_opened(MIDDLE, 1, 1) == []
    [action] = session.stage_opened(TAIL, 1, 2)
    assert isinstance(action, SendFrame)
    assert session.state is SessionState.OPENING
    assert session.stage_opened(HEAD, 1, 0) == []
    assert session.state is SessionState.RUNNING


def test_the_first_token_may_be_here_before_the_heads_word() -> None:
    session = Session(ORDER)
    session.start(CHAIN, {})
    session.stage_opened(TAIL, 1, 2)
    assert session.sampled(TAIL, sampled(8)) == [], "rows cannot have come through a stage that is not open"
    session.stage_opened(MIDDLE, 1, 1)
    assert any(isinstance(action, Deliver) for action in session.sampled(TAIL, sampled(8)))
    assert session.state is SessionState.RUNNING
    assert session.stage_opened(HEAD, 1, 0) == []
    session.validate()


def test_a_chain_of_one_stage_gets_the_prompt_behind_its_order_to_open() -> None:
    session = Session(ORDER)
    rerouted, order, rows = session.start(SPARE, {})
    assert isinstance(rerouted, Rerouted)
    assert isinstance(order, SendMessage)
    assert isinstance(rows, SendFrame)
    assert session.stage_opened(facts.node_id(4), 1, 0) == []
    assert session.state is SessionState.RUNNING


def test_a_long_log_is_cut_into_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.openings.MAX_ROWS_PER_FRAME", 2)
    actions = Session(ORDER).start(SPARE, {})
    segments = [decode_frame(action.frame).segments[0] for action in actions if isinstance(action, SendFrame)]
    assert [(s.position, s.num_tokens, s.seq) for s in segments] == [(0, 2, 0), (2, 1, 1)]


# ---------------------------------------------------------------- tokens


def test_tokens_are_logged_and_delivered() -> None:
    session = opened()
    [deliver] = session.sampled(TAIL, sampled(8, 9))
    assert isinstance(deliver, Deliver)
    assert (deliver.position, deliver.tokens, deliver.finish_reason) == (3, (8, 9), None)
    assert session.log == (5, 6, 7, 8, 9)


def test_the_last_token_closes_the_chain() -> None:
    session = opened()
    deliver, *closes = session.sampled(TAIL, sampled(8, 2, finish=FinishReason.STOP))
    assert isinstance(deliver, Deliver)
    assert deliver.finish_reason is FinishReason.STOP
    assert closed_nodes(closes) == [HEAD, MIDDLE, TAIL]
    assert session.state is SessionState.ENDED


def test_the_token_limit_ends_it_even_if_the_tail_does_not_say_so() -> None:
    session = opened()
    deliver, *closes = session.sampled(TAIL, sampled(8, 9, 8, 9))
    assert isinstance(deliver, Deliver)
    assert deliver.finish_reason is FinishReason.LENGTH
    assert len(closes) == 3


@pytest.mark.parametrize(
    ("node_id", "message"),
    [
        (HEAD, sampled(8)),
        (facts.node_id(9), sampled(8)),
        (TAIL, sampled(8, epoch=0)),
        (TAIL, sampled(8, epoch=2)),
        (TAIL, sampled(8, position=2)),
        (TAIL, sampled(8, position=4)),
    ],
)
def test_anything_but_the_next_tokens_from_the_tail_is_dropped(node_id: str, message: TokensSampled) -> None:
    session = opened()
    assert session.sampled(node_id, message) == []  # type: ignore[arg-type]
    assert session.tokens == []


def test_tokens_repeated_by_the_tail_are_delivered_once() -> None:
    session = opened()
    assert len(session.sampled(TAIL, sampled(8))) == 1
    assert session.sampled(TAIL, sampled(8)) == []
    assert session.tokens == [8]


def test_more_tokens_than_asked_for_break_the_chain() -> None:
    session = opened()
    actions = session.sampled(TAIL, sampled(1, 2, 3, 4, 5))
    assert session.tokens == []
    assert actions[-1] == NeedChain(ORDER.session_id, frozenset({facts.key(3)}))


# ---------------------------------------------------------------- recovery


def test_a_lost_device_means_a_new_chain_away_from_it() -> None:
    session = opened()
    session.sampled(TAIL, sampled(8))
    actions = session.devices_lost({facts.key(2), facts.key(77)})
    assert closed_nodes(actions) == [HEAD, MIDDLE, TAIL]
    assert actions[-1] == NeedChain(ORDER.session_id, frozenset({facts.key(2)}))
    assert session.state is SessionState.QUEUED
    actions = session.start(SPARE, {})
    [order], [frame] = opens(actions), [action for action in actions if isinstance(action, SendFrame)]
    assert (order.epoch, order.num_prompt_tokens, order.history) == (2, 4, (5, 6, 7, 8))
    assert order.num_reserved_tokens == 7
    assert isinstance(frame, SendFrame)
    assert struct.unpack("<4i", decode_frame(frame.frame).payload) == (5, 6, 7, 8)
    assert decode_frame(frame.frame).segments[0].epoch == 2


def test_a_device_of_no_concern_changes_nothing() -> None:
    session = opened()
    assert session.devices_lost({facts.key(9)}) == []
    assert Session(ORDER).devices_lost({facts.key(1)}) == []


def test_devices_to_avoid_add_up() -> None:
    session = opened()
    session.devices_lost({facts.key(1)})
    session.start(SPARE, {})
    assert session.devices_lost({facts.key(4)})[-1] == NeedChain(
        ORDER.session_id, frozenset({facts.key(1), facts.key(4)})
    )


def test_a_broken_stage_is_believed_only_for_itself_and_now() -> None:
    session = opened()
    for node_id, epoch, stage in ((HEAD, 1, 1), (MIDDLE, 0, 1), (MIDDLE, 2, 1), (MIDDLE, 1, 5)):
        assert session.broken(node_id, epoch, stage, "kv_full", "x") == []
    assert isinstance(session.broken(MIDDLE, 1, 1, "kv_full", "x")[-1], NeedChain)
    assert session.broken(MIDDLE, 1, 1, "kv_full", "x") == []


def test_too_many_breaks_end_it_but_lost_devices_do_not_count() -> None:
    session = Session(ORDER)
    for _ in range(9):
        session.start(SPARE, {})
        assert isinstance(session.devices_lost({facts.key(4)})[-1], NeedChain)
    for epoch in range(10, 10 + MAX_BREAKS):
        session.start(SPARE, {})
        actions = session.broken(facts.node_id(4), epoch, 0, "non_finite", "NaN.")
    assert closed_nodes(actions) == [facts.node_id(4)]
    failed = actions[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.started, session.state) == ("non_finite", False, SessionState.ENDED)


def test_breaks_with_tokens_in_between_do_not_add_up() -> None:
    session = Session(Order(facts.session_id(1), facts.DIGEST, (5, 6, 7), 50, Sampling(), ()))
    for epoch in range(1, 3 * MAX_BREAKS):
        session.start(SPARE, {})
        session.stage_opened(facts.node_id(4), epoch, 0)
        assert session.sampled(facts.node_id(4), sampled(8, position=2 + epoch, epoch=epoch))
        assert isinstance(session.broken(facts.node_id(4), epoch, 0, "link_lost", "x")[-1], NeedChain)


def test_failing_says_whether_the_user_saw_something() -> None:
    session = opened()
    session.sampled(TAIL, sampled(8))
    failed = session.fail("no_capacity", "Sorry.", 10.0)[-1]
    assert failed == Failed(ORDER.session_id, "no_capacity", "Sorry.", 10.0, started=True)


def test_a_node_that_holds_two_stages_is_closed_once() -> None:
    gpu = ChainStage(facts.key(1, facts.DeviceId("cuda:0")), 1, LayerRange(2, 6))
    session = Session(ORDER)
    session.start((CHAIN[0], gpu), {})
    assert closed_nodes(session.end()) == [HEAD]


# ---------------------------------------------------------------- the relay


def test_rows_go_to_the_stage_they_name_if_the_sender_is_the_one_before() -> None:
    session = opened()

    def target(sender: str, stage: int) -> str | None:
        segment = Segment(ORDER.session_id, 1, 3, 1, 0, stage, Phase.DECODE)
        return session.relay_target(sender, segment)  # type: ignore[arg-type]

    assert [target(HEAD, stage) for stage in range(4)] == [None, MIDDLE, None, None]
    assert [target(MIDDLE, stage) for stage in range(4)] == [None, None, TAIL, None]
    assert [target(TAIL, stage) for stage in range(4)] == [HEAD, None, None, None]


def test_only_the_present_epoch_of_a_session_with_a_chain_is_current() -> None:
    session = opened()
    assert [session.is_current(epoch) for epoch in (0, 1, 2)] == [False, True, False]
    session.devices_lost({facts.key(1)})
    assert not session.is_current(1)


def test_validate_holds_in_every_state() -> None:
    session = Session(ORDER)
    session.validate()
    session.start(CHAIN, {})
    session.validate()
    session.stage_opened(TAIL, 1, 2)
    session.validate()
    session.devices_lost({facts.key(1)})
    session.validate()
    session.end()
    session.validate()


# ---------------------------------------------------------------- what stages keep

DEVICES = frozenset(facts.key(number) for number in range(1, 9))
OTHER_MIDDLE = ChainStage(facts.key(5), 15, CHAIN[1].layers)


def running(*tokens: int, chain: tuple[ChainStage, ...] = CHAIN) -> Session:
    """It runs over devices that can keep KV, and has these tokens."""
    session = Session(replace(ORDER, max_new_tokens=20))
    session.start(chain, {}, DEVICES)
    open_all(session)
    for position, token in enumerate(tokens, start=3):
        session.sampled(chain[-1].device.node_id, sampled(token, position=position))
    return session


def open_all(session: Session) -> list[Action]:
    return [
        action
        for number, stage in enumerate(session.chain)
        for action in session.stage_opened(stage.device.node_id, session.epoch, number)
    ]


def kept(actions: list[Action]) -> list[tuple[int, int]]:
    """By stage: rows that it keeps, and from which on the next one wants rows."""
    return [(order.num_kept_tokens, order.next_from) for order in sorted(opens(actions), key=lambda order: order.stage)]


def test_a_stage_of_both_chains_keeps_all_rows_but_the_last_and_is_not_closed() -> None:
    session = running(8, 9)
    actions = session.devices_lost({facts.key(2)})
    assert closed_nodes(actions) == [MIDDLE]
    assert actions[-1] == NeedChain(ORDER.session_id, frozenset({facts.key(2)}), (facts.key(1), facts.key(3)))
    actions = session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)
    assert kept(actions) == [(4, 0), (0, 4), (4, 0)]
    assert closed_nodes(actions) == []
    [frame] = open_all(session)
    assert isinstance(frame, SendFrame)
    segment = decode_frame(frame.frame).segments[0]
    assert (segment.position, segment.num_tokens, segment.epoch) == (4, 1, 2)


def test_a_new_head_gets_the_whole_log_and_passes_on_what_the_others_lack() -> None:
    session = running(8, 9)
    session.devices_lost({facts.key(1)})
    head = ChainStage(facts.key(6), 1, CHAIN[0].layers)
    assert kept(session.start((head, *CHAIN[1:]), {}, DEVICES)) == [(0, 4), (4, 4), (4, 0)]
    [frame] = open_all(session)
    assert isinstance(frame, SendFrame)
    assert decode_frame(frame.frame).segments[0].num_tokens == 5


def test_stages_keep_their_rows_at_another_place_of_the_chain() -> None:
    session = running(8)
    session.devices_lost({facts.key(1)})
    halves = ChainStage(facts.key(6), 1, LayerRange(0, 1)), ChainStage(facts.key(7), 1, LayerRange(1, 2))
    assert kept(session.start((*halves, *CHAIN[1:]), {}, DEVICES)) == [(0, 0), (0, 3), (3, 3), (3, 0)]


def test_the_same_device_with_other_layers_or_loaded_anew_keeps_nothing() -> None:
    session = running(8)
    session.devices_lost({facts.key(2)})
    head, tail = replace(CHAIN[0], generation=99), ChainStage(facts.key(3), 13, LayerRange(3, 6))
    chain = (head, ChainStage(facts.key(5), 1, LayerRange(2, 3)), tail)
    assert kept(session.start(chain, {}, DEVICES)) == [(0, 0)] * 3


def test_what_is_not_in_the_next_chain_is_closed_after_it_was_opened() -> None:
    session = running(8)
    session.devices_lost({facts.key(2)})
    actions = session.start((CHAIN[0], ChainStage(facts.key(5), 1, LayerRange(2, 6))), {}, DEVICES)
    assert actions[-1] == SendMessage(TAIL, CloseSession(ORDER.session_id, 1))
    assert closed_nodes(actions) == [TAIL]


def test_before_its_first_token_a_chain_leaves_nothing_to_keep() -> None:
    session = running()
    assert closed_nodes(session.devices_lost({facts.key(2)})) == [HEAD, MIDDLE, TAIL]
    assert kept(session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)) == [(0, 0)] * 3


def test_of_tokens_that_came_together_the_rows_before_the_first_are_there_for_sure() -> None:
    session = running()
    session.sampled(TAIL, sampled(8, 9, 10))
    session.devices_lost({facts.key(2)})
    assert kept(session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES))[0] == (3, 0)


def test_a_second_loss_before_the_next_token_costs_no_more_than_it_took() -> None:
    session = running(8, 9)
    session.devices_lost({facts.key(2)})
    session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)
    session.devices_lost({facts.key(5)})
    middle = ChainStage(facts.key(6), 1, CHAIN[1].layers)
    assert kept(session.start((CHAIN[0], middle, CHAIN[2]), {}, DEVICES)) == [(4, 0), (0, 4), (4, 0)]


def test_a_stage_that_broke_keeps_nothing_unless_only_rows_were_lost() -> None:
    for code, survives in (("out_of_memory", False), ("rows_lost", True)):
        session = running(8)
        session.broken(MIDDLE, 1, 1, code, "x")
        assert kept(session.start(CHAIN, {}, DEVICES))[1] == ((3, 3) if survives else (0, 3))


def test_a_lost_link_is_the_far_ends_fault() -> None:
    session = running(8)
    assert session.broken(HEAD, 1, 0, "link_lost", "x")[-1] == NeedChain(
        ORDER.session_id, frozenset({facts.key(2)}), tuple(stage.device for stage in CHAIN)
    )
    assert running(8).broken(TAIL, 1, 2, "link_lost", "x")[-1].avoid == {facts.key(1)}  # type: ignore[union-attr]


def test_who_has_kept_nothing_computes_everything_with_those_before_it_and_is_not_blamed() -> None:
    session = running(8)
    session.devices_lost({facts.key(3)}, to_blame=False)
    tail = ChainStage(facts.key(6), 1, CHAIN[2].layers)
    session.start((*CHAIN[:2], tail), {}, DEVICES)
    actions = session.broken(MIDDLE, 2, 1, "nothing_kept", "x")
    assert actions[-1] == NeedChain(ORDER.session_id, frozenset())
    assert session.num_breaks == 0
    assert kept(session.start((*CHAIN[:2], tail), {}, DEVICES)) == [(0, 0)] * 3
    session.broken(MIDDLE, 3, 1, "nothing_kept", "it was not to keep anything")
    assert session.num_breaks == 1


def test_of_a_node_with_two_stages_both_stay_open_when_one_of_them_is_worth_it() -> None:
    """A close is for the whole node."""
    gpu = ChainStage(facts.key(1, facts.DeviceId("cuda:0")), 1, LayerRange(2, 6))
    keepers = frozenset({CHAIN[0].device})
    session = Session(replace(ORDER, max_new_tokens=20))
    session.start((CHAIN[0], gpu), {}, keepers)
    open_all(session)
    session.sampled(HEAD, sampled(8))
    actions = session.broken(HEAD, 1, 0, "rows_lost", "x")
    assert closed_nodes(actions) == []
    assert actions[-1].kept == (CHAIN[0].device, gpu.device)  # type: ignore[union-attr]
    actions = session.start((CHAIN[0], ChainStage(facts.key(5), 1, LayerRange(2, 6))), {}, keepers | DEVICES)
    assert kept(actions) == [(3, 0), (0, 0)]
    assert actions[-1] == SendMessage(HEAD, CloseSession(ORDER.session_id, 1)), "of the older epoch only"


def test_what_was_kept_for_too_long_is_closed_and_everything_is_computed_anew() -> None:
    session = running(8)
    assert session.let_go() == []
    session.devices_lost({facts.key(2)})
    assert closed_nodes(session.let_go()) == [HEAD, TAIL]
    assert session.let_go() == []
    assert kept(session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)) == [(0, 0)] * 3


def test_the_end_closes_what_is_kept() -> None:
    session = running(8)
    session.devices_lost({facts.key(2)})
    assert closed_nodes(session.end()) == [HEAD, TAIL]


# ---------------------------------------------------------------- moving


def test_a_session_moves_with_its_next_token() -> None:
    session = running(8)
    assert session.move_soon() == []
    assert session.sampled(TAIL, sampled(9, position=4))[1:] == [WantMove(ORDER.session_id, frozenset())]
    assert len(session.sampled(TAIL, sampled(10, position=5))) == 1, "it is asked for once"
    actions = session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)
    assert session.state is SessionState.OPENING
    assert kept(actions) == [(5, 0), (0, 5), (5, 0)]
    assert closed_nodes(actions) == [MIDDLE]
    assert session.sampled(TAIL, sampled(11, position=6)) == [], "the older chain says no more"


def test_before_its_first_token_it_moves_at_once() -> None:
    session = running()
    assert session.move_soon() == [WantMove(ORDER.session_id, frozenset())]
    actions = session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)
    assert kept(actions) == [(0, 0)] * 3
    assert closed_nodes(actions) == [MIDDLE]


def test_who_waits_for_a_chain_has_nothing_to_move_from() -> None:
    session = running(8)
    session.devices_lost({facts.key(2)})
    assert session.move_soon() == []
    session.start((CHAIN[0], OTHER_MIDDLE, CHAIN[2]), {}, DEVICES)
    open_all(session)
    assert len(session.sampled(TAIL, sampled(9, position=4, epoch=2))) == 1


def test_the_last_token_needs_no_move() -> None:
    session = running(8)
    session.move_soon()
    actions = session.sampled(TAIL, sampled(9, position=4, finish=FinishReason.STOP))
    assert not any(isinstance(action, WantMove) for action in actions)


# ---------------------------------------------------------------- prompts that begin like others'


LONG = replace(ORDER, prompt=tuple(range(3, 43)), tenant="key 1")
CACHING = tuple(replace(stage, has_prefix_cache=True) for stage in CHAIN)


def begun_with(*cached: int, chain: tuple[ChainStage, ...] = CACHING, order: Order = LONG) -> tuple[Session, int]:
    """The session, and the row of the log that goes out first."""
    session = Session(order)
    session.start(chain, {})
    actions = [a for stage, num in enumerate(cached)
               for a in session.stage_opened(chain[stage].device.node_id, 1, stage, num)]  # fmt: skip
    session.validate()
    [frame] = [decode_frame(a.frame) for a in actions if isinstance(a, SendFrame)]
    assert frame.segments[0].position + frame.segments[0].num_tokens == len(order.prompt)
    return session, frame.segments[0].position


def named(actions: list[Action]) -> list[tuple[str, ...]]:
    return [a.message.prefix_hashes for a in actions if isinstance(a, SendMessage)]


@pytest.mark.parametrize(
    ("cached", "first"),
    [((32, 32, 32), 32), ((32, 16, 32), 16), ((0, 32, 32), 0), ((33, 40, 36), 32), ((999, 999, 999), 32)],
)
def test_a_prompt_begins_where_the_first_stage_lacks_it(cached: tuple[int, ...], first: int) -> None:
    session, position = begun_with(*cached)
    assert position == first
    [deliver, *_] = session.sampled(TAIL, sampled(9, position=40))
    assert isinstance(deliver, Deliver)
    assert deliver.num_cached_tokens == first
    [deliver, *_] = session.sampled(TAIL, sampled(9, position=41))
    assert isinstance(deliver, Deliver)
    assert deliver.num_cached_tokens == 0


@pytest.mark.parametrize(
    ("num_kept", "cached", "first"),
    [
        ((40, 40), (0, 0), 40), ((0, 40), (32, 0), 32), ((0, 30), (32, 0), 16), ((40, 0), (0, 0), 40),
        ((0, 0, 40, 0), (32, 16, 0, 0), 16), ((0, 0, 0), (16, 16, 0), 0),
    ],
)  # fmt: skip
def test_before_a_stage_that_keeps_rows_others_may_begin_behind_what_is_cached(
    num_kept: tuple[int, ...], cached: tuple[int, ...], first: int
) -> None:
    assert first_row(41, num_kept, dict(enumerate(cached))) == first


def test_blocks_are_named_for_stages_that_can_use_it() -> None:
    chain = (CACHING[0], CHAIN[1], CACHING[2])
    actions = Session(LONG).start(chain, {})
    assert [len(order.prefix_hashes) for order in opens(actions)] == [2, 0, 2]
    assert {order.prefix_hashes for order in opens(actions)} == {prefix_hashes(LONG.prompt, "key 1"), ()}


def test_at_the_end_the_whole_log_is_named() -> None:
    order = replace(LONG, max_new_tokens=10)
    session, _ = begun_with(0, 0, 0, order=order)
    session.sampled(TAIL, sampled(*range(70, 78), position=40))
    actions = session.sampled(TAIL, sampled(80, 2, position=48, finish=FinishReason.STOP))
    assert named(actions) == [prefix_hashes(session.log, "key 1")] * 3
    assert len(named(actions)[0]) == 3


def test_a_chain_that_is_left_hears_no_names() -> None:
    """What it has computed behind the prompt may be another answer than the one that the session goes on with."""
    session, _ = begun_with(0, 0, 0)
    session.sampled(TAIL, sampled(9, position=40))
    left = session.move_away({stage.device for stage in CACHING})
    moved = session.start(SPARE, {})
    closes = [a.message for a in (*left, *moved) if isinstance(a, SendMessage) and isinstance(a.message, CloseSession)]
    assert len(closes) == 3
    assert not any(close.prefix_hashes for close in closes)
