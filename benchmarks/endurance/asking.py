"""People who ask, and come back for their answer as often as it takes. What they get is compared with what an
undisturbed pool says."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from benchmarks.endurance import toy_model
from benchmarks.endurance.sse import Broken, Response, request
from benchmarks.endurance.toy_model import Oracle
from protocol.values import Sampling

LIMIT_S = 900.0
"""For an answer, with all the times at which there is no coordinator."""
AGAIN_S = 0.1
MAX_AGAIN_S = 0.5
"""Between tries of whoever was refused (503): shorter than Retry-After, for the pool may be killed again by then."""
SMALL_BUFFER_BYTES = 4096
"""Of whoever stops reading: what it does not take has to wait at the pool."""


class Manner(StrEnum):
    PATIENT = "reads to the end"
    CANCELS = "leaves for good after some tokens"
    STOPS_READING = "stops reading for a while"
    DISCONNECTS = "hangs up now and then, and comes back"


class End(StrEnum):
    NONE = "runs"
    RIGHT = "right"
    WRONG = "wrong"
    LOST = "lost"
    LEFT = "left"


@dataclass(frozen=True)
class Question:
    content: str
    num_tokens: int
    sampling: Sampling
    manner: Manner = Manner.PATIENT
    after: int = 0
    """Tokens until it does what its manner says."""
    pause_s: float = 0.0


def draw_question(draw: random.Random, number: int, manners: dict[Manner, int]) -> Question:
    """Every other one greedy, the others by seed."""
    (manner,) = draw.choices(list(manners), list(manners.values()))
    num_tokens = draw.choice((8, 24, 60, 120))
    sampling = Sampling(temperature=draw.choice((0.0, 1.0)), seed=draw.randrange(2**31))
    words = " ".join(str(draw.randrange(1000)) for _ in range(draw.choice((2, 8, 30))))
    if manner is Manner.STOPS_READING:
        num_tokens = 400
    return Question(
        f"{number}: {words}", num_tokens, sampling, manner, draw.randrange(1, num_tokens), draw.uniform(1.0, 20.0)
    )


@dataclass(eq=False)
class Asker:
    """One request until its end. `port` says where the pool is now. What came twice or too early makes it wrong."""

    question: Question
    port: Callable[[], int]
    oracle: Oracle
    limit_s: float = LIMIT_S
    tokens: list[int] = field(default_factory=list)
    end: End = End.NONE
    why: str = ""
    num_connections: int = 0
    num_refused: int = 0
    last_id: str = ""
    is_queued: bool = False
    is_done: bool = False
    finish: str = ""
    _has_done: bool = False

    async def run(self) -> None:
        question = self.question
        wanted = self.oracle.answer(question.content, question.num_tokens, question.sampling)
        try:
            async with asyncio.timeout(self.limit_s):
                await self._read_until_done()
        except TimeoutError:
            self._lose(f"no end within {self.limit_s:.0f} s, {len(self.tokens)} of {len(wanted)} tokens")
        self._judge(wanted)

    def _judge(self, wanted: list[int]) -> None:
        if self.tokens != wanted[: len(self.tokens)]:
            self.end = End.WRONG
        elif self.end is End.NONE:
            whole = self.tokens == wanted and self.finish == "length"
            self.end = End.RIGHT if whole else End.WRONG

    def _lose(self, why: str) -> None:
        self.end, self.why, self.is_done = End.LOST, why, True

    async def _read_until_done(self) -> None:
        while not self.is_done:
            try:
                await self._connect_once()
            except Broken:
                await asyncio.sleep(AGAIN_S)

    async def _connect_once(self) -> None:
        response = await self._ask()
        try:
            if response.status == 200:
                self.num_connections += 1
                await self._read(response)
            else:
                await self._refused(response)
        finally:
            response.close()

    async def _ask(self) -> Response:
        size = SMALL_BUFFER_BYTES if self.question.manner is Manner.STOPS_READING else 0
        if self.last_id:
            path = f"/v1/chat/completions/{self.last_id.partition(':')[0]}/events"
            return await request(self.port(), "GET", path, headers={"Last-Event-ID": self.last_id}, receive_bytes=size)
        headers = {"X-Request-Timeout": "120"}
        if self.question.manner is not Manner.CANCELS:
            headers["Idempotency-Key"] = self.question.content[:200]
        return await request(self.port(), "POST", "/v1/chat/completions", self._body(), headers, size)

    def _body(self) -> dict[str, Any]:
        question = self.question
        return {
            "model": toy_model.NAME,
            "messages": [{"role": "user", "content": question.content}],
            "temperature": question.sampling.temperature,
            "seed": question.sampling.seed,
            "max_tokens": question.num_tokens,
            "stream": True,
            "stream_options": {"resumable": question.manner is not Manner.CANCELS},
            "return_token_ids": True,
        }

    async def _refused(self, response: Response) -> None:
        """Full, or not ready yet: try again. An answer that was begun must be there."""
        body = await response.body()
        if response.status in (503, 429):
            self.num_refused += 1
            wait_s = float(response.headers.get("retry-after", AGAIN_S))
            await asyncio.sleep(min(MAX_AGAIN_S, max(AGAIN_S, wait_s)))
            return
        self._lose(f"status {response.status}: {body[:200].decode(errors='replace')}")

    async def _read(self, response: Response) -> None:
        async for line in response.lines():
            if line.startswith(b"id: "):
                self.last_id = line[4:].decode()
            elif line == b"data: [DONE]":
                self.is_done = True
                return
            elif line.startswith(b"data: {") and await self._take(json.loads(line[6:])):
                return

    async def _take(self, event: dict[str, Any]) -> bool:
        """Whether this connection has served its turn."""
        if "error" in event:
            self._lose(f"{event['error'].get('code')}: {event['error'].get('message', '')[:160]}")
            return True
        self.is_queued |= "queue" in event.get("decentllm", {})
        before = len(self.tokens)
        for choice in event["choices"]:
            self.tokens += choice.get("token_ids", ())
            self.finish = choice.get("finish_reason") or self.finish
        return await self._behave(before)

    async def _behave(self, num_before: int) -> bool:
        """What its manner says, once, when it has so many tokens."""
        manner, after = self.question.manner, self.question.after
        if self._has_done or manner is Manner.PATIENT or not num_before <= after < len(self.tokens):
            return False
        self._has_done = True
        if manner is Manner.STOPS_READING:
            await asyncio.sleep(self.question.pause_s)
            return False
        if manner is Manner.CANCELS:
            self.end, self.is_done = End.LEFT, True
        return True
