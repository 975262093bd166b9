"""The supervisor's table by itself."""

from __future__ import annotations

import pytest

from client.status import SOFT_LEAVE_S
from client.supervisor_table import FINISH_LIMIT_S, LISTENING, PAUSE_LIMIT_S, TRANSITIONS, Do, Input, Order, Phase


def entries() -> list[tuple[Phase, Input, Phase, Do]]:
    return [(phase, given, *entry) for phase, row in TRANSITIONS.items() for given, entry in row.items() if entry]


def test_every_phase_can_be_reached_and_left_but_the_last() -> None:
    assert {after for _, _, after, _ in entries()} == set(Phase)
    assert {before for before, _, _, _ in entries()} == set(Phase) - {Phase.ENDED}


def test_an_agent_is_started_only_where_there_is_none() -> None:
    for phase, given, _, do in entries():
        if Order.START in do.orders:
            assert given is Input.EXITED or Input.EXITED not in TRANSITIONS[phase]


@pytest.mark.parametrize("phase", [phase for phase in Phase if Input.DEADLINE in TRANSITIONS[phase]])
def test_a_phase_with_a_deadline_is_entered_with_a_limit_or_kept(phase: Phase) -> None:
    limits = [(do, given) for _, given, after, do in entries() if after is phase]
    assert any(do.limit_s is not None or phase is Phase.RESTARTING for do, _ in limits)


def test_whoever_is_told_to_pause_listens() -> None:
    for phase, _, _, do in entries():
        if {Order.PAUSE, Order.PAUSE_AFTER_ANSWERS, Order.RESUME, Order.RESUME_ANYWAY} & set(do.orders):
            assert phase in LISTENING


def test_once_paused_only_the_volunteer_or_the_end_of_the_pause_makes_it_contribute() -> None:
    wishes = {Input.CONTRIBUTE, Input.CONTRIBUTE_ANYWAY, Input.PAUSE_OVER}
    pauses = (Phase.FINISHING, Phase.PAUSING, Phase.PAUSED, Phase.ENDING, Phase.STOPPED)
    for phase, given, after, _ in entries():
        assert phase not in pauses or given in wishes or after in {*pauses, Phase.LEAVING, Phase.ENDED}


def test_who_wants_the_gpu_at_once_never_waits_for_answers() -> None:
    for phase in Phase:
        for given in (Input.PAUSE, Input.PAUSE_AFTER_ANSWERS):
            after, _ = TRANSITIONS[phase][given] or (phase, Do())
            assert after is not Phase.FINISHING or (given is Input.PAUSE_AFTER_ANSWERS and phase is not Phase.PAUSING)


def test_a_pause_after_answers_has_their_time_and_that_of_any_pause() -> None:
    assert FINISH_LIMIT_S == SOFT_LEAVE_S + PAUSE_LIMIT_S
