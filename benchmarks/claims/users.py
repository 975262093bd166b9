"""Users: open-loop load over the real API, and what each of them saw."""

from __future__ import annotations

import asyncio
import json
import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from benchmarks.claims.scene import Ask
from coordinator.scheduler.cost import Bound

PATH = "/v1/chat/completions"
PATIENCE_S = 90.0
"""Then a user gives up, whatever has come."""
TEMPLATE_TOKENS = 18
"""What the chat template adds to a message, with a tokenizer that takes every byte for a token."""


@dataclass(slots=True)
class Answer:
    """One request's fate. Times in seconds since the load began; token times are arrivals at the user."""

    ask: Ask
    token_times_s: list[float] = field(default_factory=list)
    nodes: tuple[str, ...] = ()
    num_chains: int = 0
    error: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.error and len(self.token_times_s) >= self.ask.num_answer_tokens

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.ask.at_s

    @property
    def latency_s(self) -> float:
        return self.token_times_s[-1] - self.ask.at_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; 0 for an answer of one token."""
        times = self.token_times_s
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

    def meets(self, bound: Bound) -> bool:
        return self.is_whole and self.ttft_s <= bound.ttft_s and self.tpot_s <= bound.tpot_s


class Summary(msgspec.Struct, frozen=True):
    """Of a window of time; 0 where nothing came."""

    num_asked: int
    num_whole: int
    num_in_bound: int
    goodput_tokens_per_s: float
    """Tokens of requests within the bound."""
    tokens_per_s: float
    mean_latency_s: float
    p99_latency_s: float
    mean_ttft_s: float
    mean_tpot_s: float
    p99_tpot_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is done to the pool while the load runs."""

    at_s: float
    make: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Door:
    """Where users come in. `trust` is for a pool with a certificate of its own, which is for `certificate_name` if that
    is not the address; `key` is for a pool that is not open."""

    url: str
    model: str
    trust: ssl.SSLContext | None = None
    certificate_name: str = ""
    key: str = ""

    @property
    def extensions(self) -> dict[str, str]:
        """Of each request: which name the server is asked for, and has to prove."""
        return {"sni_hostname": self.certificate_name} if self.certificate_name else {}

    def client(self) -> httpx.AsyncClient:
        verify = True if self.trust is None else self.trust
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(base_url=self.url, verify=verify, headers=headers, limits=limits, timeout=PATIENCE_S)


def play(door: Door, asks: Sequence[Ask], changes: Sequence[Change] = ()) -> list[Answer]:
    """Ask at the times given, whatever has been answered until then; returns when all answers have ended."""
    return asyncio.run(_play(door, asks, changes))


async def _play(door: Door, asks: Sequence[Ask], changes: Sequence[Change]) -> list[Answer]:
    answers = [Answer(ask) for ask in asks]
    async with door.client() as client:
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for change in changes:
                group.create_task(_make_change(change, began_s))
            for answer in answers:
                group.create_task(_ask(client, door, answer, began_s))
    return answers


async def _make_change(change: Change, began_s: float) -> None:
    await asyncio.sleep(began_s + change.at_s - time.monotonic())
    change.make()


async def _ask(client: httpx.AsyncClient, door: Door, answer: Answer, began_s: float) -> None:
    await asyncio.sleep(began_s + answer.ask.at_s - time.monotonic())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _read_answer(client, door, answer, began_s)
    except TimeoutError:
        answer.error = "out_of_patience"
    except httpx.HTTPError as error:
        answer.error = type(error).__name__


async def _read_answer(client: httpx.AsyncClient, door: Door, answer: Answer, began_s: float) -> None:
    body = _body(door.model, answer.ask)
    async with client.stream("POST", PATH, json=body, extensions=door.extensions) as response:
        if response.status_code != httpx.codes.OK:
            answer.error = f"status {response.status_code}"
            return
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                _take(answer, json.loads(line[6:]), time.monotonic() - began_s)


def _body(model: str, ask: Ask) -> dict[str, Any]:
    """Greedy; the text is as long as wanted and begins differently for everybody, so that nothing is cached."""
    start = f"{ask.at_s:.6f} "
    content = (start + "a" * ask.num_prompt_tokens)[: max(1, ask.num_prompt_tokens - TEMPLATE_TOKENS)]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": ask.num_answer_tokens,
        "stream": True,
        "return_token_ids": True,
    }


def _take(answer: Answer, event: dict[str, Any], now_s: float) -> None:
    if "error" in event:
        answer.error = str(event["error"].get("code") or event["error"].get("message"))
        return
    if nodes := event.get("decentllm", {}).get("nodes"):
        answer.nodes = tuple(node["name"] for node in nodes)
        answer.num_chains += 1
    for choice in event.get("choices", ()):
        answer.token_times_s += [now_s] * len(choice.get("token_ids") or ())


def summarise(answers: Sequence[Answer], from_s: float, until_s: float, bound: Bound | None = None) -> Summary:
    """Rates are of answers that ended in [from_s, until_s], all else of requests that arrived in [from_s, until_s): as
    the simulator counts (coordinator/simulate/outcome.py). What is still answered later is no throughput."""
    limit = bound or Bound()
    asked = [answer for answer in answers if from_s <= answer.ask.at_s < until_s]
    whole = [answer for answer in asked if answer.is_whole]
    ended = [answer for answer in answers if answer.is_whole and from_s <= answer.token_times_s[-1] <= until_s]
    latencies, tpots = [a.latency_s for a in whole], [a.tpot_s for a in whole]
    return Summary(
        num_asked=len(asked),
        num_whole=len(whole),
        num_in_bound=sum(answer.meets(limit) for answer in whole),
        goodput_tokens_per_s=_tokens([a for a in ended if a.meets(limit)]) / (until_s - from_s),
        tokens_per_s=_tokens(ended) / (until_s - from_s),
        mean_latency_s=_mean(latencies),
        p99_latency_s=quantile(latencies, 0.99),
        mean_ttft_s=_mean([a.ttft_s for a in whole]),
        mean_tpot_s=_mean(tpots),
        p99_tpot_s=quantile(tpots, 0.99),
    )


def _tokens(answers: Sequence[Answer]) -> int:
    return sum(len(answer.token_times_s) for answer in answers)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
