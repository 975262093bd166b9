"""A person at the chat page, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integration.chromium import ANSWER_MS, opened, screenshot
from tests.integration.conftest import Served


@pytest.fixture
def page(browser: Browser, real_pool: Served) -> Iterator[Page]:
    """The chat page."""
    with opened(browser, real_pool.pool.url) as page:
        yield page


def answer_steadily(page: Page) -> None:
    """At temperature 0 the answer is the model's likeliest one, every time."""
    page.get_by_test_id("settings").click()
    page.get_by_test_id("temperature").fill("0")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("temperature")).to_be_hidden()


def test_a_typed_question_is_answered_in_a_stream(page: Page, tmp_path: Path) -> None:
    answer_steadily(page)
    composer = page.get_by_test_id("composer")
    composer.fill("Write a Python function that reverses a string.")
    expect(page.get_by_test_id("send")).to_be_enabled()
    composer.press("Enter")
    answer = page.get_by_test_id("message-assistant")
    expect(answer).to_contain_text("Here", timeout=ANSWER_MS)
    early = answer.inner_text()
    expect(page.get_by_test_id("stop")).to_be_visible()
    expect(page.get_by_test_id("answered-by").last).to_contain_text("alice", timeout=ANSWER_MS)
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=ANSWER_MS)
    whole = answer.inner_text()
    assert len(whole) > len(early), "the answer grew while it was read"
    assert "def reverse_string" in whole
    expect(page.get_by_test_id("answered-by").last).to_contain_text("bob")
    screenshot(page, "chat-page.png", tmp_path)


def test_the_stop_button_ends_an_answer_and_the_next_one_works(page: Page, real_pool: Served) -> None:
    composer = page.get_by_test_id("composer")
    composer.fill("Count from one to one thousand in words.")
    page.get_by_test_id("send").click()
    expect(page.get_by_test_id("message-assistant")).not_to_be_empty(timeout=ANSWER_MS)
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("stop")).to_be_hidden()
    composer.fill("Say yes.")
    page.get_by_test_id("send").click()
    expect(page.get_by_test_id("message-assistant")).to_have_count(2)
    expect(page.get_by_test_id("stop")).to_be_hidden(timeout=ANSWER_MS)
    expect(page.get_by_test_id("message-assistant").last).not_to_be_empty()


def test_the_page_says_who_can_read_the_messages_and_which_model_answers(page: Page, real_pool: Served) -> None:
    expect(page.get_by_test_id("privacy-note")).to_be_visible()
    expect(page.get_by_test_id("model-name")).to_contain_text(real_pool.model)
