"""A user who reads an answer while something is done to the pool: every token with its time, every chain, the error.

Who asks for a resumable answer comes back for it when the connection breaks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import httpx

PATH = "/v1/chat/completions"
LIMIT_S = 300.0
"""Then a reader gives up, and the answer counts as lost."""
COME_BACK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """A greedy request."""

    model: str
    content: str
    num_tokens: int
    is_resumable: bool = False

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": self.content}]}
        body |= {"temperature": 0, "max_tokens": self.num_tokens, "stream": True, "return_token_ids": True}
        options = {"include_usage": True} | ({"resumable": True} if self.is_resumable else {})
        return body | {"stream_options": options}


@dataclass(frozen=True, slots=True)
class Chain:
    """The answer runs over these nodes from now on. Times are of time.monotonic."""

    at_s: float
    nodes: tuple[str, ...]


@dataclass
class Heard:
    """An answer as its user got it. `num_prompt_tokens` is known at its end, and how many of them were cached."""

    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    """Of each token."""
    chains: list[Chain] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_connections: int = 0
    is_done: bool = False
    error: str = ""

    def take(self, line: str, now_s: float) -> None:
        """A line of the event stream."""
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: {"):
            self._take_event(json.loads(line[6:]), now_s)

    def _take_event(self, event: dict[str, Any], now_s: float) -> None:
        if "error" in event:
            self.error = str(event["error"].get("code") or event["error"].get("message"))
            return
        if nodes := event.get("decentllm", {}).get("nodes"):
            self.chains.append(Chain(now_s, tuple(node["name"] for node in nodes)))
        if usage := event.get("usage"):
            self.num_prompt_tokens = usage["prompt_tokens"]
            self.num_cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        for choice in event.get("choices", ()):
            new = choice.get("token_ids") or ()
            self.tokens += new
            self.times_s += [now_s] * len(new)


class Reader:
    """Reads an answer in a thread of its own. `client` is the caller's to close."""

    def __init__(self, client: httpx.Client, question: Question) -> None:
        self.heard = Heard()
        self._client, self._question = client, question
        self._last_id = ""
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, condition: Callable[[Heard], bool]) -> bool:
        """Until it is so, the answer has ended, or LIMIT_S have passed; whether it is so."""
        with self._news:
            self._news.wait_for(lambda: condition(self.heard) or self._has_ended, LIMIT_S)
            return condition(self.heard)

    def wait_for_tokens(self, num_tokens: int) -> bool:
        return self.wait_for(lambda heard: len(heard.tokens) >= num_tokens)

    def wait(self) -> Heard:
        """The whole answer."""
        self._thread.join(LIMIT_S)
        return self.heard

    @property
    def _has_ended(self) -> bool:
        return self.heard.is_done or bool(self.heard.error)

    def _run(self) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not self._has_ended:
            try:
                self._read(deadline_s)
            except httpx.TransportError as error:
                if not self._question.is_resumable or time.monotonic() > deadline_s:
                    self._end(type(error).__name__)
                else:
                    time.sleep(COME_BACK_EVERY_S)

    def _read(self, deadline_s: float) -> None:
        with self._request() as response:
            if response.status_code != httpx.codes.OK:
                self._end(f"status {response.status_code}")
                return
            self.heard.num_connections += 1
            for line in response.iter_lines():
                self._take(line)
                if time.monotonic() > deadline_s:
                    self._end("out_of_patience")
                    return
        if not self._has_ended and not self._question.is_resumable:
            self._end("cut_short")

    def _request(self) -> AbstractContextManager[httpx.Response]:
        if not self._last_id:
            return self._client.stream("POST", PATH, json=self._question.body)
        path = f"{PATH}/{self._last_id.partition(':')[0]}/events"
        return self._client.stream("GET", path, headers={"Last-Event-ID": self._last_id})

    def _take(self, line: str) -> None:
        with self._news:
            if line.startswith("id: "):
                self._last_id = line[4:]
            self.heard.take(line, time.monotonic())
            self._news.notify_all()

    def _end(self, error: str) -> None:
        with self._news:
            self.heard.error = error
            self._news.notify_all()


def asked(client: httpx.Client, question: Question) -> Heard:
    """The whole answer, with nothing else to do meanwhile."""
    return Reader(client, question).wait()
