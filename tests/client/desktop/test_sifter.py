"""Which readings are worth a line."""

from __future__ import annotations

import pytest

from client.desktop.sifter import TELL_AGAIN_S, Sifter
from client.status import SessionReading

AWAY_S = 180.0


@pytest.fixture
def sifter() -> Sifter:
    sifter = Sifter()
    assert sifter.is_worth_telling(SessionReading(10.0, False, False), AWAY_S, 100.0)
    return sifter


@pytest.mark.parametrize(
    ("reading", "is_news"),
    [
        (SessionReading(11.0, False, False), False),
        (SessionReading(0.0, False, False), False),
        (SessionReading(AWAY_S, False, False), True),
        (SessionReading(None, False, False), True),
        (SessionReading(11.0, True, False), True),
        (SessionReading(11.0, None, False), True),
        (SessionReading(11.0, False, True), True),
    ],
)
def test_only_what_could_change_the_verdict_is_told_at_once(
    sifter: Sifter, reading: SessionReading, is_news: bool
) -> None:
    assert sifter.is_worth_telling(reading, AWAY_S, 101.0) is is_news


def test_the_same_is_told_again_before_it_is_too_old(sifter: Sifter) -> None:
    same = SessionReading(10.0, False, False)
    times = [101.0, 104.9, 100.0 + TELL_AGAIN_S, 105.5, 100.0 + 2 * TELL_AGAIN_S]
    assert [sifter.is_worth_telling(same, AWAY_S, now_s) for now_s in times] == [False, False, True, False, True]


def test_coming_back_is_told_at_once(sifter: Sifter) -> None:
    assert sifter.is_worth_telling(SessionReading(AWAY_S + 5, False, False), AWAY_S, 101.0)
    assert sifter.is_worth_telling(SessionReading(0.5, False, False), AWAY_S, 102.0)


def test_a_new_agent_knows_nothing(sifter: Sifter) -> None:
    sifter.forget()
    assert sifter.is_worth_telling(SessionReading(10.0, False, False), AWAY_S, 101.0)
