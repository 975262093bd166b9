"""What those hear who wait."""

from __future__ import annotations

from coordinator.effects import ToUser
from coordinator.queue_news import QUEUE_NEWS_S, QueueNews
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.sessions import Queued
from tests.fakes import pool_facts as facts

ONE, TWO = facts.session_id(1), facts.session_id(2)


def place(number: int, wait_s: float | None = None) -> QueuePlace:
    return QueuePlace(number, 2, wait_s)


def waiting() -> QueueNews:
    news = QueueNews()
    news.tell(ONE, place(1), 0.0)
    news.tell(TWO, place(2), 0.0)
    return news


def test_a_place_that_has_not_changed_is_no_news() -> None:
    assert waiting().changes({ONE: place(1), TWO: place(2)}, QUEUE_NEWS_S) == []


def test_a_new_place_is_told_once() -> None:
    news = waiting()
    news.forget(ONE)
    places = {TWO: place(1)}
    assert news.changes(places, QUEUE_NEWS_S) == [ToUser(TWO, Queued(1, 2, None))]
    assert news.changes(places, 2 * QUEUE_NEWS_S) == []


def test_a_new_place_waits_until_the_last_news_is_a_second_old() -> None:
    news = waiting()
    news.forget(ONE)
    assert news.changes({TWO: place(1)}, QUEUE_NEWS_S / 2) == []


def test_the_first_idea_of_a_time_is_news() -> None:
    assert waiting().changes({ONE: place(1, 3.0), TWO: place(2)}, QUEUE_NEWS_S) == [ToUser(ONE, Queued(1, 2, 3.0))]


def test_who_waits_no_more_hears_nothing() -> None:
    news = waiting()
    news.forget(ONE)
    news.forget(TWO)
    news.forget(TWO)
    assert news.told == frozenset()
    assert news.changes({}, QUEUE_NEWS_S) == []
