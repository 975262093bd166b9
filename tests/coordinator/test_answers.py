"""Who reads which answer, and how long one waits for whom."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coordinator.answer_times import AnswerTimes
from coordinator.answers import AnswerBook, Item, KeptAnswer, ended
from coordinator.sessions import Deliver, Failed, Order, Queued, Rerouted
from coordinator.token_log import Accepted, Claim, Ended, Kept
from protocol.values import UNKNOWN_LOGPROB, FinishReason, Sampling, SessionId, StepTiming, TokenLogprobs
from tests.fakes import pool_facts as facts

TIMES = AnswerTimes(grace_s=30.0, unread_s=60.0, retention_s=600.0)
ONE = facts.session_id(1)


def answer(number: int = 1, *, resumable: bool = True, tenant: str = "key a", retry_key: str = "") -> KeptAnswer:
    order = Order(facts.session_id(number), facts.DIGEST, (5, 6, 7), 4, Sampling(), (2,), tenant)
    return KeptAnswer(Accepted(order, Claim(f"id {number}", is_resumable=resumable, retry_key=retry_key)))


def deliver(position: int, *tokens: int, finish: FinishReason | None = None) -> Deliver:
    return Deliver(ONE, position, tokens, finish, StepTiming(10, 1))


def read(reader: asyncio.Queue[Item | Failed]) -> list[Item | Failed]:
    return [reader.get_nowait() for _ in range(reader.qsize())]


def opened(*answers: KeptAnswer) -> AnswerBook:
    book = AnswerBook(TIMES)
    for one in answers:
        book.put(one)
    return book


def test_who_comes_late_hears_all_tokens_and_then_what_comes() -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    chain = Rerouted(ONE, ())
    for item in (Queued(1, 1, None), chain, deliver(3, 8), deliver(4, 9)):
        book.take(ONE, item, 1.0)
    book.attach(one, reader)
    assert read(reader) == [chain, Deliver(ONE, 3, (8, 9), None, StepTiming(20, 2))]
    book.take(ONE, deliver(5, 2, finish=FinishReason.STOP), 2.0)
    assert read(reader) == [deliver(5, 2, finish=FinishReason.STOP)]


def test_who_comes_late_hears_how_much_of_the_prompt_was_cached() -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    for item in (replace(deliver(3, 8), num_cached_tokens=16), deliver(4, 9)):
        book.take(ONE, item, 1.0)
    book.attach(one, reader)
    assert read(reader) == [Deliver(ONE, 3, (8, 9), None, StepTiming(20, 2), num_cached_tokens=16)]


def logged(*logprobs: float) -> tuple[TokenLogprobs, ...]:
    return tuple(map(TokenLogprobs, logprobs))


@pytest.mark.parametrize(
    ("num_wanted", "said", "expected"),
    [(None, (), ()), (None, (-1.0,), ()), (0, (-1.0,), (UNKNOWN_LOGPROB, -1.0)), (2, (), (UNKNOWN_LOGPROB,) * 2)],
)
def test_each_token_has_a_logprob_if_they_are_wanted_and_none_has_if_not(
    num_wanted: int | None, said: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """The first token was recorded by a coordinator before this one, which did not record how likely it was."""
    order = Order(ONE, facts.DIGEST, (5, 6, 7), 4, Sampling(num_logprobs=num_wanted), (2,))
    book, reader = AnswerBook(TIMES), asyncio.Queue[Item | Failed]()
    one = book.restore(Kept(Accepted(order, Claim()), (8,), None, 1), 0.0, 0.0)
    book.take(ONE, replace(deliver(4, 9), logprobs=logged(*said)), 1.0)
    book.attach(one, reader)
    assert [item.logprobs for item in read(reader) if isinstance(item, Deliver)] == [logged(*expected)]


def test_two_may_read_and_the_last_one_to_leave_decides() -> None:
    one = answer(resumable=False)
    first, second = asyncio.Queue[Item | Failed](), asyncio.Queue[Item | Failed]()
    book = opened(one)
    book.attach(one, first)
    book.attach(one, second)
    assert not book.detach(one, first, 1.0)
    book.take(ONE, deliver(3, 8), 2.0)
    assert (read(first), read(second)) == ([], [deliver(3, 8)])
    assert book.detach(one, second, 3.0)


@pytest.mark.parametrize(("has_ended", "kept_s"), [(False, 30.0), (True, 600.0)])
def test_an_answer_waits_for_who_can_come_back(has_ended: bool, kept_s: float) -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    book.attach(one, reader)
    book.take(ONE, deliver(3, 8, finish=FinishReason.STOP if has_ended else None), 1.0)
    assert not book.detach(one, reader, 10.0)
    assert book.overdue(10.0 + kept_s - 0.1) == []
    assert book.overdue(10.0 + kept_s) == [one]
    book.attach(one, reader)
    assert book.overdue(10_000.0) == []


def test_an_answer_that_ends_unread_is_kept_from_its_end_on() -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    book.attach(one, reader)
    book.detach(one, reader, 10.0)
    assert book.take(ONE, deliver(3, 8, finish=FinishReason.STOP), 20.0) is one
    assert book.overdue(600.0) == []
    assert book.overdue(620.0) == [one]


@pytest.mark.parametrize("started", [True, False])
def test_a_refusal_is_told_and_not_kept(started: bool) -> None:
    one, reader = answer(retry_key="story"), asyncio.Queue[Item | Failed]()
    book = opened(one)
    book.attach(one, reader)
    failed = Failed(ONE, "no_capacity", "Try again.", 1.0, started=started)
    book.take(ONE, failed, 1.0)
    assert read(reader) == [failed]
    assert book.detach(one, reader, 2.0) is not started


def test_a_refusal_waits_for_a_reader_who_has_not_come_back_yet() -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    failed = Failed(ONE, "no_capacity", "Try again.", 1.0, started=False)
    book.take(ONE, failed, 1.0)
    assert not book.overdue(2.0)
    book.attach(one, reader)
    assert read(reader) == [failed]


def test_nothing_comes_behind_the_end() -> None:
    one, reader = answer(), asyncio.Queue[Item | Failed]()
    book = opened(one)
    book.attach(one, reader)
    gone = Failed(ONE, "gone", "It is gone.")
    assert book.take(ONE, gone, 1.0) is one
    assert book.take(ONE, deliver(3, 8), 2.0) is None
    assert read(reader) == [gone]
    late = asyncio.Queue[Item | Failed]()
    book.attach(one, late)
    assert read(late) == [gone]


@pytest.mark.parametrize(
    ("tokens", "was_ended", "finish", "until_s"),
    [
        ((8, 9), None, None, 100.0 + 60.0),
        ((8, 9), Ended(ONE, FinishReason.STOP, 5_000.0), FinishReason.STOP, 100.0 + 600.0 - 50.0),
        ((8, 9), Ended(ONE, FinishReason.STOP, 1.0), FinishReason.STOP, 100.0),
        ((8, 9), Ended(ONE, FinishReason.STOP, 9_999.0), FinishReason.STOP, 100.0 + 600.0),
        ((8, 2), None, FinishReason.STOP, 100.0 + 600.0),
        ((8, 8, 8, 8), None, FinishReason.LENGTH, 100.0 + 600.0),
    ],
    ids=[
        "unfinished",
        "ended",
        "long ago",
        "the clock went back",
        "its last token stops it",
        "it is as long as it may",
    ],
)
def test_what_comes_back_from_the_log(
    tokens: tuple[int, ...], was_ended: Ended | None, finish: FinishReason | None, until_s: float
) -> None:
    book = AnswerBook(TIMES)
    restored = book.restore(Kept(answer(resumable=False).accepted, tokens, was_ended, 1), 100.0, 5_050.0)
    assert (restored.finish, restored.until_s, restored.tokens) == (finish, until_s, list(tokens))
    assert restored.is_kept, "nobody reads it yet, whoever asked"


def test_an_answer_is_found_by_its_id_by_who_may() -> None:
    one = answer()
    book = opened(one, answer(2, tenant="key b"))
    assert book.find("id 1", lambda found: found.order.tenant == "key a") is one
    assert book.find("id 1", lambda found: found.order.tenant == "key b") is None
    assert book.find("id 3", lambda _: True) is None
    book.drop(ONE)
    book.drop(ONE)
    assert book.find("id 1", lambda _: True) is None


def test_a_repeated_request_is_found_by_its_own_tenant() -> None:
    one = answer(retry_key="abc")
    book = opened(one, answer(2))
    assert book.repeated("key a", "abc") is one
    assert book.repeated("key b", "abc") is None
    assert book.repeated("key a", "") is None


def test_of_two_requests_under_one_name_the_older_one_is_found_as_long_as_it_is_there() -> None:
    one, two = answer(retry_key="abc"), answer(2, retry_key="abc")
    book = opened(one, two)
    assert book.repeated("key a", "abc") is one
    book.drop(ONE)
    assert book.repeated("key a", "abc") is two
    book.drop(two.order.session_id)
    assert book.repeated("key a", "abc") is None


def test_news_of_an_answer_that_is_gone_are_nothing() -> None:
    book = AnswerBook()
    assert book.take(SessionId("0" * 32), deliver(3, 8), 1.0) is None


def test_what_the_log_is_told_of_an_end() -> None:
    one = answer()
    one.finish = FinishReason.LENGTH
    assert ended(one, 77.0) == Ended(ONE, FinishReason.LENGTH, 77.0)
