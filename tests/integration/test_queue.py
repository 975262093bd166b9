"""A pool with room for one answer at a time: whoever comes later is told so, and answered in turn."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from coordinator.api.served import model_facts
from coordinator.models.catalog import Catalog
from coordinator.scheduler.cost import memory_for
from demo.local_pool import local_pool
from protocol.values import Variant
from tests.integration.chromium import ANSWER_MS, ask, opened
from tests.integration.conftest import READY_S, Served, save_endless_chat
from tests.integration.streams import Stream

NUM_TOKENS = 400
"""Two such answers need more than the context of 512, and what one more layer would need, as KV room."""


@pytest.fixture(scope="module")
def narrow_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("narrow-pool")
    model = save_endless_chat(folder / "tiny-endless")
    facts = model_facts(Catalog(folder / "limits").add(str(model)))
    size = memory_for(facts, Variant.FLOAT32, facts.num_layers + 1)
    with local_pool(folder, [str(model)]) as pool:
        pool.add_node("one", "--cpu", "--max-memory", str(size))
        pool.wait_ready(READY_S)
        yield Served(pool, model.name)


def full_pool(served: Served, num_waiting: int) -> list[Stream]:
    """Answers of which the first runs and the others wait."""
    streams = [Stream(served, "the first", NUM_TOKENS)]
    streams[0].wait_begun()
    for number in range(num_waiting):
        streams.append(Stream(served, f"number {number}", NUM_TOKENS))
        streams[-1].wait_queued()
    return streams


def test_who_has_to_wait_is_told_the_place_and_then_answered(narrow_pool: Served) -> None:
    contents = ("the first", "number 0", "number 1", "number 2")
    undisturbed = [narrow_pool.tokens(content, NUM_TOKENS) for content in contents]
    first, second, third, fourth = full_pool(narrow_pool, 3)
    assert (second.places[0]["place"], second.places[0]["num_waiting"]) == (1, 1)
    assert (third.places[0]["place"], third.places[0]["num_waiting"]) == (2, 2)
    assert second.places[0]["expected_wait_s"] > 0, "by the answers before"
    assert [stream.wait() for stream in (first, second, third, fourth)] == undisturbed
    assert first.places == []
    places = [told["place"] for told in fourth.places]
    assert places[0] == 3
    assert places[-1] < 3, "it was told that it had moved up (at most once a second, which an answer may take)"


def test_who_leaves_the_queue_makes_room_in_it(narrow_pool: Served, browser: Browser) -> None:
    with opened(browser, narrow_pool.pool.url) as page:
        streams = full_pool(narrow_pool, 2)
        ask(page, "What is a pool?")
        expect(page.get_by_test_id("queue")).to_contain_text(re.compile(r"You are number ([23]) of \1"))
        page.get_by_test_id("queue-cancel").click()
        expect(page.get_by_test_id("queue")).to_be_hidden()
        narrow_pool.pool.wait_until(lambda state: state["num_waiting"] < len(streams), READY_S)
        assert all(len(stream.wait()) == NUM_TOKENS for stream in streams)
        expect(page.get_by_test_id("answered-by")).to_have_count(0)


def test_the_chat_page_shows_the_place_and_then_the_answer(narrow_pool: Served, browser: Browser) -> None:
    with opened(browser, narrow_pool.pool.url) as page:
        streams = full_pool(narrow_pool, 2)
        ask(page, "What is a pool?")
        expect(page.get_by_test_id("queue")).to_contain_text(re.compile(r"You are number ([23]) of \1"))
        expect(page.get_by_test_id("answered-by")).to_contain_text("one", timeout=ANSWER_MS)
        expect(page.get_by_test_id("queue")).to_be_hidden()
        expect(page.get_by_test_id("message-assistant")).not_to_be_empty()
        assert all(len(stream.wait()) == NUM_TOKENS for stream in streams)
