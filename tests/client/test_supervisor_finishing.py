"""The supervisor, where a pause waits for answers."""

from __future__ import annotations

import pytest

from client.status import SOFT_LEAVE_S, Pause, encode_line
from client.supervisor import (
    AgentExited,
    ContributePressed,
    KillAgent,
    PausePressed,
    SendLine,
    Supervisor,
    TimePassed,
    WakeAfter,
)
from client.supervisor_table import FINISH_LIMIT_S, PAUSE_LIMIT_S, START_LIMIT_S, Phase
from tests.client.test_supervisor import PAUSE_LINE, PAUSED, RESUME_LINE, SERVING, run

FINISH_LINE = SendLine(encode_line(Pause(after_answers=True)))


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


def finishing(supervisor: Supervisor) -> None:
    """In the middle of an answer, and told to pause after it."""
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, PausePressed(after_answers=True)) == [FINISH_LINE, WakeAfter(FINISH_LIMIT_S)]
    run(supervisor, SERVING)
    assert supervisor.snapshot().phase is Phase.FINISHING


def test_answers_have_their_time_before_the_pause(supervisor: Supervisor) -> None:
    finishing(supervisor)
    assert run(supervisor, PAUSED, now_s=SOFT_LEAVE_S) == []
    assert supervisor.snapshot().phase is Phase.PAUSED
    assert run(supervisor, TimePassed(), now_s=FINISH_LIMIT_S) == []


def test_an_agent_that_does_not_end_its_answers_is_killed_and_the_pause_holds(supervisor: Supervisor) -> None:
    finishing(supervisor)
    assert run(supervisor, TimePassed(), now_s=FINISH_LIMIT_S) == [KillAgent()]
    run(supervisor, AgentExited(-9), now_s=FINISH_LIMIT_S)
    assert supervisor.snapshot().phase is Phase.STOPPED


def test_an_agent_that_dies_over_its_answers_stays_paused(supervisor: Supervisor) -> None:
    finishing(supervisor)
    assert run(supervisor, AgentExited(-11), TimePassed(), now_s=3600.0) == []
    assert (supervisor.snapshot().phase, supervisor.snapshot().problem) == (Phase.STOPPED, "")


def test_a_pause_at_once_does_not_wait_for_the_answers(supervisor: Supervisor) -> None:
    finishing(supervisor)
    assert run(supervisor, PausePressed(), now_s=5.0) == [PAUSE_LINE, WakeAfter(PAUSE_LIMIT_S)]
    assert supervisor.snapshot().phase is Phase.PAUSING
    assert run(supervisor, PausePressed(after_answers=True), now_s=6.0) == [PAUSE_LINE], "it is not made softer"


def test_resume_takes_a_pause_after_answers_back(supervisor: Supervisor) -> None:
    finishing(supervisor)
    assert run(supervisor, ContributePressed()) == [RESUME_LINE, WakeAfter(START_LIMIT_S)]
    run(supervisor, SERVING)
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_another_end_gives_the_answers_no_more_time(supervisor: Supervisor) -> None:
    finishing(supervisor)
    line = SendLine(encode_line(Pause(900.0, after_answers=True)))
    assert run(supervisor, PausePressed(900.0, after_answers=True), now_s=FINISH_LIMIT_S - 1) == [line]
    assert run(supervisor, TimePassed(), now_s=FINISH_LIMIT_S) == [KillAgent()]
