"""Why it is paused, in sentences."""

from __future__ import annotations

from datetime import datetime

import pytest

from client.status import AgentState, PauseInfo, Status
from client.ui.pause_choice import ManualPause
from client.ui.pause_text import (
    SENTENCES,
    automatic_pause_sentence,
    detail_of,
    finishing_sentence,
    manual_pause_headline,
    manual_pause_sentence,
    reason_of,
)
from protocol.pause import PauseReason

NOW_S = datetime(2027, 1, 14, 17, 30).timestamp()


def test_every_reason_has_its_own_sentence() -> None:
    assert set(SENTENCES) == set(PauseReason)
    assert len(set(SENTENCES.values())) == len(PauseReason)


def test_the_first_reason_is_told() -> None:
    pause = PauseInfo((PauseReason.BATTERY, PauseReason.HOT), NOW_S)
    assert reason_of(pause) == "The computer runs on battery."
    assert automatic_pause_sentence(pause, NOW_S) == "It goes on by itself once the computer is plugged in."


@pytest.mark.parametrize(
    ("resumes_in_s", "sentence"),
    [
        (0.0, "It goes on by itself in 1 s, if nothing stirs again."),
        (42.0, "It goes on by itself in 42 s, if nothing stirs again."),
        (4.5 * 3600, "It goes on by itself at 22:00."),
    ],
)
def test_when_it_goes_on_is_told(resumes_in_s: float, sentence: str) -> None:
    pause = PauseInfo((PauseReason.HOURS,), NOW_S, resumes_at_s=NOW_S + resumes_in_s)
    assert automatic_pause_sentence(pause, NOW_S) == sentence


def test_without_a_reason_it_says_what_is_certain() -> None:
    for pause in (None, PauseInfo((), NOW_S)):
        assert reason_of(pause) == ""
        assert automatic_pause_sentence(pause, NOW_S).startswith("Your devices' memory is free.")


def test_what_was_seen_is_one_line() -> None:
    assert detail_of(PauseInfo((PauseReason.VIDEO,), NOW_S, "vlc\n\u202eevil")) == "vlc evil"
    assert detail_of(None) == ""


def test_a_pause_by_hand_says_what_ends_it() -> None:
    end_s = datetime(2027, 1, 15, 8, 0).timestamp()
    assert manual_pause_headline(end_s, NOW_S) == "Paused until tomorrow 8:00"
    assert manual_pause_sentence(end_s, None, NOW_S).endswith("It goes on by itself tomorrow at 8:00.")
    assert manual_pause_headline(None, NOW_S) == "Paused"
    assert manual_pause_sentence(None, ManualPause(), NOW_S).endswith("It goes on when you say so.")
    until_restart = ManualPause(outlives_app=False)
    assert manual_pause_sentence(None, until_restart, NOW_S).endswith("or when the app starts again.")


@pytest.mark.parametrize(
    ("num_sessions", "leaves_in_s", "sentence"),
    [
        (2, 24.0, "Finishing 2 answers, at most 24 s more."),
        (1, 24.4, "Finishing 1 answer, at most 24 s more."),
        (1_200, 0.2, "Finishing 1,200 answers, at most 1 s more."),
        (2, -3600.0, "Finishing 2 answers, at most 1 s more."),
        (2, 3600.0, "Finishing 2 answers, at most 30 s more."),
        (2, None, "Finishing 2 answers."),
        (0, 24.0, "Leaving the pool and freeing your devices' memory."),
        (-1, None, "Leaving the pool and freeing your devices' memory."),
    ],
)
def test_what_is_finished_and_for_how_long_at_most(num_sessions: int, leaves_in_s: float | None, sentence: str) -> None:
    leaves_at_s = None if leaves_in_s is None else NOW_S + leaves_in_s
    status = Status(AgentState.SERVING, num_sessions=num_sessions, leaves_at_s=leaves_at_s)
    assert finishing_sentence(status, NOW_S) == sentence
