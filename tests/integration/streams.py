"""Answers that are read while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.integration.conftest import Served

LIMIT_S = 300.0


class Stream:
    """A greedy answer as it comes: its tokens, the chains that gave it, its places in the queue; at its end, how much
    of its prompt was cached."""

    def __init__(self, served: Served, content: str, num_tokens: int) -> None:
        self.tokens: list[int] = []
        self.chains: list[list[str]] = []
        self.places: list[dict[str, Any]] = []
        self.num_cached_tokens = 0
        self._news = threading.Condition()
        usage = {"include_usage": True}
        self._events = served.events(content, max_tokens=num_tokens, return_token_ids=True, stream_options=usage)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait_begun(self) -> None:
        """Until the first token is there."""
        self._wait_for(lambda: bool(self.tokens))

    def wait_for_tokens(self, num_tokens: int) -> None:
        """Until so many are there."""
        self._wait_for(lambda: len(self.tokens) >= num_tokens)

    def wait_queued(self) -> None:
        """Until it has been told its place."""
        self._wait_for(lambda: bool(self.places))

    def wait(self) -> list[int]:
        """The whole answer's tokens."""
        self._thread.join(LIMIT_S)
        return self.tokens

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(condition, LIMIT_S)

    def _read(self) -> None:
        for event in self._events:
            with self._news:
                self._take(event)
                self._news.notify_all()

    def _take(self, event: dict[str, Any]) -> None:
        extra = event.get("decentllm", {})
        if "nodes" in extra:
            self.chains.append([node["name"] for node in extra["nodes"]])
        if "queue" in extra:
            self.places.append(extra["queue"])
        if "usage" in event:
            self.num_cached_tokens = event["usage"]["prompt_tokens_details"]["cached_tokens"]
        for choice in event.get("choices", ()):
            self.tokens += choice.get("token_ids", ())
