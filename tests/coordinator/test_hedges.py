"""A second chain beside a session's own: who wins, who takes over, what is dropped."""

from __future__ import annotations

from dataclasses import replace

from coordinator.affinity import prefix_hashes
from coordinator.hedges import MAX_HEDGES, TRANSITIONS, Hedge, HedgeState
from coordinator.scheduler.commands import ChainStage
from coordinator.sessions import (
    Action,
    Deliver,
    HedgeEnded,
    NeedChain,
    Order,
    Rerouted,
    SendFrame,
    SendMessage,
    Session,
    SessionState,
)
from protocol.frames import decode_frame
from protocol.messages import CloseSession, OpenSession, TokensSampled
from protocol.values import FinishReason, LayerRange, NodeId, Sampling
from tests.fakes import pool_facts as facts

ORDER = Order(facts.session_id(1), facts.DIGEST, (5, 6, 7), 9, Sampling(0.5, seed=9), (2,))
LAYERS = (LayerRange(0, 2), LayerRange(2, 4))
OWN, OTHER = (
    tuple(ChainStage(facts.key(number), 1, layers) for number, layers in zip(numbers, LAYERS, strict=True))
    for numbers in ((1, 2), (3, 4))
)
TAIL, OTHER_TAIL = OWN[-1].device.node_id, OTHER[-1].device.node_id


def running() -> Session:
    """A session with one token, at position 3."""
    session = Session(ORDER)
    session.start(OWN, {}, frozenset(stage.device for stage in OWN))
    for stage, place in enumerate(OWN):
        session.stage_opened(place.device.node_id, 1, stage)
    session.sampled(TAIL, said(1, 3, 11))
    return session


def said(epoch: int, position: int, *tokens: int, finish: FinishReason | None = None) -> TokensSampled:
    return TokensSampled(ORDER.session_id, epoch, position, tokens, finish_reason=finish)


def hedged(session: Session, *, catch_up_tokens: int = 9) -> Session:
    """A second chain is open and has the log of now."""
    keepers = frozenset(stage.device for stage in OTHER)
    session.open_hedge(Hedge(OTHER, {}, keepers, catch_up_tokens=catch_up_tokens))
    opened(session)
    return session


def opened(session: Session) -> list[Action]:
    assert session.hedge is not None
    actions: list[Action] = []
    for stage, place in enumerate(OTHER):
        actions += session.stage_opened(place.device.node_id, session.hedge.epoch, stage)
    session.validate()
    return actions


def closed(actions: list[Action]) -> dict[NodeId, int]:
    return {a.node_id: a.message.epoch for a in actions if isinstance(a, SendMessage) and _is_close(a)}


def _is_close(action: SendMessage) -> bool:
    return isinstance(action.message, CloseSession)


def delivered(actions: list[Action]) -> list[tuple[int, ...]]:
    return [a.tokens for a in actions if isinstance(a, Deliver)]


def test_every_state_of_a_second_chain_leads_somewhere() -> None:
    assert {state for state, _ in TRANSITIONS} == set(HedgeState)


def test_a_second_chain_opens_in_a_newer_epoch_and_gets_the_log_as_it_was() -> None:
    session = running()
    actions = session.open_hedge(Hedge(OTHER, {}, frozenset()))
    orders = [a.message for a in actions if isinstance(a, SendMessage) and isinstance(a.message, OpenSession)]
    assert [(o.stage, o.epoch, o.num_prompt_tokens) for o in orders] == [(1, 2, 4), (0, 2, 4)]
    session.sampled(TAIL, said(1, 4, 12))
    frames = [decode_frame(a.frame) for a in opened(session) if isinstance(a, SendFrame)]
    assert [(f.segments[0].position, f.segments[0].num_tokens) for f in frames] == [(0, 4)]
    assert session.epoch == 1


def test_the_first_chain_goes_on_and_what_the_second_says_once_more_is_not_committed() -> None:
    session = hedged(running())
    assert delivered(session.sampled(TAIL, said(1, 4, 12))) == [(12,)]
    assert session.sampled(OTHER_TAIL, said(2, 4, 12)) == []
    assert session.tokens == [11, 12]


def test_who_gives_the_next_token_first_wins_and_the_loser_is_closed_and_fenced() -> None:
    session = hedged(running())
    session.sampled(TAIL, said(1, 4, 12))
    session.sampled(OTHER_TAIL, said(2, 4, 12))
    actions = session.sampled(OTHER_TAIL, said(2, 5, 13))
    assert closed(actions) == {stage.device.node_id: 1 for stage in OWN}
    assert HedgeEnded(ORDER.session_id, has_won=True) in actions
    assert Rerouted(ORDER.session_id, OTHER, 2) in actions
    assert delivered(actions) == [(13,)]
    assert (session.state, session.epoch, session.hedge) == (SessionState.RUNNING, 2, None)
    assert session.sampled(TAIL, said(1, 6, 14)) == []
    assert delivered(session.sampled(OTHER_TAIL, said(2, 6, 14))) == [(14,)]
    session.validate()


def test_a_second_chain_that_says_something_else_takes_over_behind_what_is_right() -> None:
    """Rounding differs between devices: its KV is that of another answer from there on."""
    session = hedged(running())
    session.sampled(TAIL, said(1, 4, 12))
    actions = session.sampled(OTHER_TAIL, said(2, 4, 99))
    assert [a.takes_over for a in actions if isinstance(a, NeedChain)] == [True]
    session.start(OTHER, {}, frozenset(stage.device for stage in OTHER))
    assert (session.tokens, session.num_kept, session.epoch) == ([11, 12], (4, 4), 3)


def test_if_the_own_chain_is_lost_a_second_one_that_is_warm_takes_over() -> None:
    session = hedged(running())
    session.sampled(TAIL, said(1, 4, 12))
    session.sampled(OTHER_TAIL, said(2, 4, 12))
    session.sampled(TAIL, said(1, 5, 13))
    actions = session.devices_lost({OWN[0].device})
    assert [(a.takes_over, a.kept) for a in actions if isinstance(a, NeedChain)] == [
        (True, tuple(stage.device for stage in OTHER))
    ]
    assert OTHER_TAIL not in closed(actions)
    session.start(OTHER, {}, frozenset(stage.device for stage in OTHER))
    assert session.num_kept == (4, 4)


def test_if_the_own_chain_is_lost_a_second_one_that_has_nothing_yet_is_closed() -> None:
    session = hedged(running())
    actions = session.devices_lost({OWN[0].device})
    assert [a.takes_over for a in actions if isinstance(a, NeedChain)] == [False]
    assert closed(actions)[OTHER_TAIL] == 2
    assert session.hedge is None


def test_a_second_chain_that_breaks_costs_its_session_nothing() -> None:
    session = hedged(running())
    actions = session.broken(OTHER_TAIL, 2, 1, "non_finite", "Not a number.")
    assert HedgeEnded(ORDER.session_id, has_won=False) in actions
    assert (session.num_breaks, session.state) == (0, SessionState.RUNNING)
    assert delivered(session.sampled(TAIL, said(1, 4, 12))) == [(12,)]


def test_who_is_far_behind_gets_the_rest_at_once_and_only_once() -> None:
    session = hedged(running(), catch_up_tokens=2)
    for position in range(4, 8):
        session.sampled(TAIL, said(1, position, position))
    actions = session.sampled(OTHER_TAIL, said(2, 4, 4))
    orders = [a.message for a in actions if isinstance(a, SendMessage) and isinstance(a.message, OpenSession)]
    assert [(o.epoch, o.num_kept_tokens, o.num_prompt_tokens) for o in orders] == [(3, 4, 8), (3, 4, 8)]
    frames = [decode_frame(a.frame) for a in opened(session) if isinstance(a, SendFrame)]
    assert [(f.segments[0].position, f.segments[0].num_tokens) for f in frames] == [(4, 4)]
    assert delivered(session.sampled(OTHER_TAIL, said(3, 8, 21))) == [(21,)]


def test_who_is_in_a_hurry_is_relieved_as_soon_as_the_log_is_computed() -> None:
    session = hedged(running())
    session.sampled(TAIL, said(1, 4, 12))
    assert session.hurry() == []
    actions = session.sampled(OTHER_TAIL, said(2, 4, 12))
    assert [a.takes_over for a in actions if isinstance(a, NeedChain)] == [True]


def test_the_end_closes_both_chains() -> None:
    session = hedged(running())
    assert closed(session.end()) == {**{s.device.node_id: 1 for s in OWN}, **{s.device.node_id: 2 for s in OTHER}}


def test_a_session_has_a_few_second_chains_at_most() -> None:
    session = running()
    for _ in range(MAX_HEDGES):
        assert session.may_hedge
        hedged(session)
        session.end_hedge()
    assert not session.may_hedge


def test_a_second_chain_begins_behind_what_its_stages_have_cached() -> None:
    order = replace(ORDER, prompt=tuple(range(3, 43)), tenant="key 1", max_new_tokens=9)
    session, other = Session(order), tuple(replace(stage, has_prefix_cache=True) for stage in OTHER)
    session.start(OWN, {}, frozenset(stage.device for stage in OWN))
    for stage, place in enumerate(OWN):
        session.stage_opened(place.device.node_id, 1, stage)
    session.sampled(TAIL, said(1, 40, 11))
    opens = session.open_hedge(Hedge(other, {}, frozenset()))
    names = [a.message.prefix_hashes for a in opens if isinstance(a, SendMessage)]
    assert names == [prefix_hashes(session.log, "key 1")] * 2
    session.stage_opened(other[0].device.node_id, 2, 0, 32)
    frames = session.stage_opened(other[1].device.node_id, 2, 1, 16)
    [segment] = [decode_frame(a.frame).segments[0] for a in frames if isinstance(a, SendFrame)]
    assert (segment.position, segment.num_tokens) == (16, 25)
