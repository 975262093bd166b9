"""How long a pause by hand lasts."""

from __future__ import annotations

from datetime import datetime

import pytest

from client.ui.pause_choice import AFTER_ANSWERS, MAX_PAUSE_S, ManualPause, PauseChoice, pause_of

NOW_S = datetime(2027, 1, 14, 17, 30).timestamp()


@pytest.mark.parametrize(
    ("choice", "until"),
    [
        (PauseChoice.QUARTER_HOUR, datetime(2027, 1, 14, 17, 45)),
        (PauseChoice.HOUR, datetime(2027, 1, 14, 18, 30)),
        (PauseChoice.TOMORROW, datetime(2027, 1, 15, 8, 0)),
    ],
)
def test_choices_with_an_end_have_it_by_the_wall_clock(choice: PauseChoice, until: datetime) -> None:
    pause = pause_of(choice, NOW_S)
    assert pause == ManualPause(until.timestamp())
    assert pause.remaining_s(NOW_S) == until.timestamp() - NOW_S
    assert not pause.is_over(NOW_S)
    assert pause.is_over(until.timestamp())


def test_after_midnight_tomorrow_is_still_the_next_day() -> None:
    night_s = datetime(2027, 1, 14, 0, 30).timestamp()
    assert pause_of(PauseChoice.TOMORROW, night_s).until_s == datetime(2027, 1, 15, 8, 0).timestamp()


@pytest.mark.parametrize("choice", [PauseChoice.UNTIL_RESUMED, PauseChoice.UNTIL_RESTART])
def test_choices_without_an_end_never_end_by_themselves(choice: PauseChoice) -> None:
    pause = pause_of(choice, NOW_S)
    assert pause.remaining_s(NOW_S) is None
    assert not pause.is_over(NOW_S + 10**9)
    assert pause.outlives_app is (choice is PauseChoice.UNTIL_RESUMED)


def test_a_pause_after_answers_always_outlives_the_app() -> None:
    assert all(pause_of(choice, NOW_S).outlives_app for choice in AFTER_ANSWERS)


def test_a_clock_that_was_wrong_does_not_pause_for_years() -> None:
    assert ManualPause(NOW_S + MAX_PAUSE_S + 1).is_over(NOW_S)
