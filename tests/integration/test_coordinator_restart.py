"""A coordinator that is killed in mid-answer and started again: answers go on, nodes keep what they have loaded."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, expect

from coordinator.journal import JOURNAL_NAME
from demo.local_pool import local_pool
from tests.integration.chromium import ANSWER_MS, opened
from tests.integration.conftest import READY_S, Served
from tests.integration.test_failover import children_of, num_serving

NUM_TOKENS = 200
CAME_BACK = "it came back with these layers loaded"


@pytest.fixture(scope="module")
def served(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two nodes that hold a model of four layers together."""
    with local_pool(tmp_path_factory.mktemp("restarted"), [str(endless_folder)]) as pool:
        for name in ("one", "two"):
            pool.add_node(name, "--cpu", "--max-layers", "2")
        pool.wait_until(lambda state: num_serving(state) == 2, READY_S)
        yield Served(pool, endless_folder.name)


class Reader:
    """A client that comes back: reads an answer over the coordinator's death, in a thread."""

    def __init__(self, served: Served, content: str) -> None:
        self.tokens: list[int] = []
        self.heads: set[tuple[str, int]] = set()
        self.num_connections = 0
        self.resumed_at_s = 0.0
        self._served = served
        self._content = content
        self._last_id = ""
        self._is_done = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, num_tokens: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.tokens) >= num_tokens, READY_S)

    def wait(self) -> list[int]:
        self._thread.join(READY_S)
        assert self._is_done
        return self.tokens

    def _run(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while not self._is_done and time.monotonic() < deadline_s:
            try:
                with self._request() as response:
                    assert response.status_code == 200, response.read()
                    self.num_connections += 1
                    for line in response.iter_lines():
                        self._take(line)
            except httpx.TransportError:
                time.sleep(0.1)

    def _request(self) -> Any:
        http = self._served.pool.http
        if not self._last_id:
            options = {"resumable": True}
            body = self._served.body(
                self._content, stream=True, stream_options=options, max_tokens=NUM_TOKENS, return_token_ids=True
            )
            return http.stream("POST", "/v1/chat/completions", json=body)
        path = f"/v1/chat/completions/{self._last_id.partition(':')[0]}/events"
        return http.stream("GET", path, headers={"Last-Event-ID": self._last_id})

    def _take(self, line: str) -> None:
        with self._news:
            if line.startswith("id: "):
                self._last_id = line[4:]
            elif line == "data: [DONE]":
                self._is_done = True
            elif line.startswith("data: {"):
                event = json.loads(line[6:])
                self.heads.add((event["id"], event["created"]))
                new = [token for choice in event["choices"] for token in choice.get("token_ids", ())]
                if new and self.num_connections > 1 and not self.resumed_at_s:
                    self.resumed_at_s = time.monotonic()
                self.tokens += new
            self._news.notify_all()


@pytest.mark.parametrize("num_seen", [1, 40, 120])
def test_answers_go_on_and_no_node_loads_again_when_the_coordinator_is_killed(served: Served, num_seen: int) -> None:
    contents = [f"a long story, number {number}" for number in range(3)]
    undisturbed = [served.tokens(content, NUM_TOKENS) for content in contents]
    workers = [children_of(node.process.pid) for node in served.pool.nodes]
    readers = [Reader(served, content) for content in contents]
    for reader in readers:
        reader.wait_for(num_seen)
    served.pool.restart_coordinator()
    assert [reader.wait() for reader in readers] == undisturbed
    assert [len(reader.heads) for reader in readers] == [1, 1, 1]
    assert [children_of(node.process.pid) for node in served.pool.nodes] == workers
    assert all(psutil.pid_exists(pid) for pids in workers for pid in pids)
    devices = [device for node in served.pool.state()["nodes"] for device in node["devices"]]
    assert [(device["state"], device["reason"]) for device in devices] == [("serving", CAME_BACK)] * 2


def test_nothing_of_an_answer_is_left_on_the_disk_when_it_has_ended(served: Served) -> None:
    before = rows_in(served)
    served.complete("a secret", max_tokens=5)
    deadline_s = time.monotonic() + READY_S
    while rows_in(served) != before and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert rows_in(served) == before
    files = list(served.pool.data_dir.glob(f"{JOURNAL_NAME}*"))
    assert files and all(file.stat().st_mode & 0o077 == 0 for file in files)


def rows_in(served: Served) -> tuple[int, int]:
    """Answers and groups of tokens in the journal: those of the tests before, whose readers could come back."""
    database = sqlite3.connect(served.pool.data_dir / JOURNAL_NAME)
    try:
        counts = database.execute("SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM tokens)").fetchone()
        return counts[0], counts[1]
    finally:
        database.close()


def test_the_chat_page_comes_back_to_its_answer(served: Served, browser: Browser) -> None:
    with opened(browser, served.pool.url, allowed=("net::ERR", "Failed to load resource")) as page:
        page.get_by_test_id("settings").click()
        page.get_by_test_id("temperature").fill("0")
        page.get_by_test_id("max-tokens").fill("900")
        page.keyboard.press("Escape")
        composer = page.get_by_test_id("composer")
        composer.fill("a long story")
        expect(page.get_by_test_id("send")).to_be_enabled()
        composer.press("Enter")
        answer = page.get_by_test_id("message-assistant")
        expect(answer).not_to_be_empty(timeout=ANSWER_MS)
        served.pool.coordinator.process.kill()
        expect(page.get_by_test_id("reconnecting")).to_be_visible()
        early = answer.inner_text().replace(page.get_by_test_id("reconnecting").inner_text(), "").strip()
        assert early
        served.pool.restart_coordinator()
        expect(page.get_by_test_id("stop")).to_be_hidden(timeout=ANSWER_MS)
        expect(page.get_by_test_id("reconnecting")).to_be_hidden()
        whole = answer.inner_text().strip()
        assert len(whole) > len(early)
        assert whole.startswith(early[:20].rstrip("\ufffd")), "a character may have been unfinished"
        expect(page.get_by_test_id("error")).to_have_count(0)
        expect(page.get_by_test_id("answered-by").last).to_contain_text("one")
