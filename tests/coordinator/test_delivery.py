"""Recorded first, shown then; and what happens while nothing can be recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.delivery import MAX_TRIES, Delivery, Forget, News, page_of
from coordinator.errors import GenerationFailed, PoolError, RequestRefused, StorageUnavailable
from coordinator.sessions import Deliver, Failed
from coordinator.token_log import Accepted, Claim, MemoryTokenLog, Page
from protocol.values import StepTiming
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.hub_driver import HubDriver, order, running_hub
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import on_virtual_time

ONE, TWO = facts.session_id(1), facts.session_id(2)
PAUSED = "answers cannot be recorded"


class FullDisk(MemoryTokenLog):
    """A log that can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False
        self.pages: list[Page] = []

    async def write(self, page: Page) -> None:
        await asyncio.sleep(0.001)
        if self.is_full:
            raise StorageUnavailable("disk full")
        self.pages.append(page)
        await super().write(page)


def news(number: int, position: int, *tokens: int) -> News:
    session_id = facts.session_id(number)
    return News(session_id, Deliver(session_id, position, tokens, None, StepTiming()))


def accepted(number: int) -> Accepted:
    return Accepted(order(number), Claim())


@asynccontextmanager
async def delivering(log: FullDisk) -> AsyncIterator[tuple[Delivery, list[News], list[Failed]]]:
    shown, given_up = list[News](), list[Failed]()
    delivery = Delivery(log, VirtualWorld().env(), shown.append, given_up.append)
    running = asyncio.create_task(delivery.run())
    yield delivery, shown, given_up
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@on_virtual_time
async def test_what_gathers_is_recorded_at_once_and_shown_in_order() -> None:
    log = FullDisk()
    async with delivering(log) as (delivery, shown, _):
        pieces = [accepted(1), news(1, 3, 7), accepted(2), news(2, 3, 8), news(1, 4, 9)]
        for piece in pieces:
            delivery.put(piece)
        await asyncio.sleep(1)
        assert len(log.pages) == 1
        assert shown == [piece for piece in pieces if isinstance(piece, News)]


def test_a_request_that_is_refused_at_once_is_recorded_nowhere() -> None:
    failed = News(ONE, Failed(ONE, "no", "No.", None, started=False))
    page = page_of([accepted(1), failed])
    assert page.accepted and page.forgotten == (ONE,)
    assert not page_of([])


@pytest.mark.expected_logs(PAUSED)
@on_virtual_time
async def test_new_requests_are_refused_and_running_answers_wait_while_nothing_can_be_recorded() -> None:
    log = FullDisk()
    async with delivering(log) as (delivery, shown, given_up):
        delivery.put(accepted(1))
        await asyncio.sleep(1)
        log.is_full = True
        delivery.put(news(1, 3, 7))
        await asyncio.sleep(1)
        delivery.put(accepted(2))
        delivery.put(news(2, 3, 8))
        await asyncio.sleep(4)
        assert [(f.session_id, f.code, f.started) for f in given_up] == [(TWO, "storage_unavailable", False)]
        assert shown == []
        log.is_full = False
        await asyncio.sleep(4)
        assert shown == [news(1, 3, 7)]
        assert log.tokens == {ONE: [7]}


@pytest.mark.expected_logs(PAUSED)
@on_virtual_time
async def test_an_answer_breaks_off_when_it_has_waited_in_vain_and_what_is_owed_is_written_later() -> None:
    log = FullDisk()
    async with delivering(log) as (delivery, shown, given_up):
        delivery.put(accepted(1))
        delivery.put(news(1, 3, 6))
        await asyncio.sleep(1)
        log.is_full = True
        delivery.put(news(1, 4, 7))
        delivery.put(Forget(TWO))
        await asyncio.sleep(120)
        assert [(f.session_id, f.code, f.started) for f in given_up] == [(ONE, "storage_unavailable", True)]
        assert shown == [news(1, 3, 6)]
        log.is_full = False
        delivery.put(Forget(ONE))
        await asyncio.sleep(1)
        assert log.pages[-1].forgotten == (ONE, TWO)
        assert log.tokens == {}


@pytest.mark.expected_logs("the last news")
@on_virtual_time
async def test_the_last_news_are_tried_once() -> None:
    log = FullDisk()
    delivery = Delivery(log, VirtualWorld().env(), lambda _: None, lambda _: None)
    delivery.put(Forget(ONE))
    await delivery.flush()
    assert log.pages[-1].forgotten == (ONE,)
    log.is_full = True
    await delivery.flush()


# ---------------------------------------------------------------- in a pool


async def tokens_of(pool: HubDriver, number: int, num_tokens: int, seen: list[int]) -> list[int]:
    async with aclosing(pool.hub.generate(order(number, num_tokens=num_tokens))) as items:
        async for item in items:
            if isinstance(item, Deliver):
                seen += item.tokens
    return seen


def recorded(log: FullDisk, seen: list[int]) -> bool:
    """Whether everything that was seen was written before."""
    written = [
        token for page in log.pages for session_id, _, tokens in page.entries if session_id == ONE for token in tokens
    ]
    return written[: len(seen)] == seen


@pytest.mark.expected_logs(PAUSED)
@on_virtual_time
async def test_a_pool_whose_disk_is_full_for_a_while_shows_nothing_that_is_not_recorded() -> None:
    log = FullDisk()
    async with running_hub(FakeNode(1, facts.spec(8)), token_log=log) as pool:
        seen = list[int]()
        running = asyncio.create_task(tokens_of(pool, 1, 200, seen))
        await pool.until(lambda: len(seen) > 20)
        log.is_full = True
        await asyncio.sleep(1)
        num_seen = len(seen)
        with pytest.raises(RequestRefused) as refused:
            await tokens_of(pool, 2, 8, [])
        assert refused.value.code == "storage_unavailable"
        assert len(seen) == num_seen and recorded(log, seen)
        log.is_full = False
        assert await running == answer_to((5, 6, 7), 200)
        assert recorded(log, seen)
        assert await tokens_of(pool, 3, 8, []) == answer_to((5, 6, 7), 8)
        await pool.until(lambda: log.tokens == {})


@pytest.mark.expected_logs(PAUSED)
@on_virtual_time
async def test_a_pool_whose_disk_stays_full_ends_its_answers_with_an_error() -> None:
    log = FullDisk()
    fake = FakeNode(1, facts.spec(8))
    async with running_hub(fake, token_log=log) as pool:
        seen = list[int]()
        running = asyncio.create_task(tokens_of(pool, 1, 400, seen))
        await pool.until(lambda: len(seen) > 20)
        log.is_full = True
        with pytest.raises(GenerationFailed) as caught:
            await running
        assert isinstance(caught.value, PoolError) and caught.value.code == "storage_unavailable"
        assert recorded(log, seen)
        await pool.until(lambda: not pool.hub.core.sessions and not fake.legs)


def test_the_tries_are_bounded() -> None:
    assert 1 < MAX_TRIES < 100
