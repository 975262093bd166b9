"""Who stops an answer frees its room on every node at once: in a pool with room for one answer, the next one begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import httpx
import pytest

from demo.local_pool import local_pool
from tests.integration.conftest import READY_S, Served, memory_limits, save_endless_chat
from tests.integration.streams import Stream

log = logging.getLogger(__name__)

NUM_TOKENS = 1900
"""Two such answers need more KV room than a node has: the context of three layers, for the two that it holds."""
LIMIT_S = 10.0
"""Far from the aim of 250 ms, which includes no waiting for a machine that is busy with other things."""


@pytest.fixture(scope="module")
def narrow_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("narrow-pool")
    model = save_endless_chat(folder / "tiny-endless", max_position_embeddings=2048)
    size = memory_limits(model, folder, 2)
    with local_pool(folder, [str(model)]) as pool:
        for name in ("one", "two"):
            pool.add_node(name, "--cpu", "--max-memory", str(size))
        pool.wait_ready(READY_S)
        yield Served(pool, model.name)


@pytest.mark.parametrize(("content", "num_lines"), [("a longer question " * 4, 1), ("short", 40), ("short", 80)])
def test_an_answer_that_is_stopped_frees_its_room_on_every_node(
    narrow_pool: Served, content: str, num_lines: int
) -> None:
    """While the prompt is computed, and while tokens come; the workers have room for the next one when it is opened."""
    with httpx.Client(base_url=narrow_pool.pool.url, timeout=LIMIT_S * 6) as client:
        body = narrow_pool.body(content, stream=True, max_tokens=NUM_TOKENS)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            for _ in range(num_lines):
                next(lines)
            waiting = Stream(narrow_pool, "the next one", NUM_TOKENS)
            waiting.wait_queued()
            begin_s = time.monotonic()
    waiting.wait_begun()
    elapsed_s = time.monotonic() - begin_s
    log.info("the next answer began %.0f ms after the client of the one before had left", elapsed_s * 1000)
    assert elapsed_s < LIMIT_S
    assert len(waiting.wait()) == NUM_TOKENS
    assert len(waiting.chains) == 1, "it did not have to be moved for want of room"
