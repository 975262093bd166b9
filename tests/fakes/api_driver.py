"""The whole HTTP side over a hub with fake nodes that say a text of the test's choice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI

from coordinator.api.chat import ChatService, ServedModel
from coordinator.api.http import build_http
from coordinator.api.routes import Routes
from coordinator.models.catalog import Model
from coordinator.models.errors import PromptError
from coordinator.models.tokenizer import ChatTokenizer
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.asgi_client import AsgiClient
from tests.fakes.fake_node import FakeNode, Rule
from tests.fakes.hub_driver import HubDriver, running_hub

CHAT = "/v1/chat/completions"
NAME = "tiny"
ANSWER_MARK, STOP = 1, 2
TEXT = "Hello, world!"
MANIFEST = b'{"version":1}'


class FakeTokenizer:
    """One token per character: its code point. An answer begins behind ANSWER_MARK."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = "".join(f"{message['role']}:{message['content']}\n" for message in messages)
        if "\0" in text:
            raise PromptError("there is a NUL in it")
        return [ord(char) for char in text if text.strip()] + [ANSWER_MARK]

    def decoder(self) -> FakeTextStream:
        return FakeTextStream()


class FakeTextStream:
    def push(self, tokens: list[int]) -> str:
        return "".join(chr(token) for token in tokens if token != STOP)

    def finish(self) -> str:
        return ""


def says(text: str) -> Rule:
    """A toy model that answers every prompt with this text and then stops."""

    def rule(history: Sequence[int]) -> int:
        begun = list(reversed(history)).index(ANSWER_MARK)
        return ord(text[begun]) if begun < len(text) else STOP

    return rule


def speaker(number: int = 1, text: str = TEXT, max_layers: int = 8) -> FakeNode:
    return FakeNode(number, facts.spec(max_layers), rule=says(text))


@dataclass
class ApiDriver:
    http: FastAPI
    client: AsgiClient
    pool: HubDriver
    nodes: tuple[FakeNode, ...]

    def num_open_sessions(self) -> int:
        return sum(len(node.legs) for node in self.nodes) + len(self.pool.hub.core.sessions)

    async def still_works(self) -> None:
        """The next good request succeeds and nothing of the last one is left."""
        reply = await self.client.post(CHAT, question())
        assert reply.status == 200, reply.body
        assert reply.json()["choices"][0]["message"]["content"] == TEXT
        await self.pool.until(lambda: self.num_open_sessions() == 0)


@asynccontextmanager
async def running_api(
    *nodes: FakeNode, context_length: int = 1000, files: Mapping[str, Path] | None = None
) -> AsyncIterator[ApiDriver]:
    """An API whose pool has these nodes; none means that the model has nobody to answer."""
    facts_of_model = facts.model(context_length=context_length)
    async with running_hub(*nodes, model=facts_of_model) as pool:
        env = pool.world.env("coordinator")
        model = served_model(context_length)
        weights = cast(Model, SimpleNamespace(files=files or {}, manifest_bytes=MANIFEST))
        routes = Routes(pool.hub, ChatService(pool.hub, env, {NAME: model}), {facts.DIGEST: weights}, env)
        http = build_http(routes, env.random, cast(Any, None), "test")
        yield ApiDriver(http, AsgiClient(http), pool, nodes)


def served_model(context_length: int = 1000) -> ServedModel:
    return ServedModel(
        name=NAME,
        manifest_hash=facts.DIGEST,
        num_layers=8,
        context_length=context_length,
        tokenizer=cast(ChatTokenizer, FakeTokenizer()),
        stop_tokens=(STOP,),
        default_sampling=Sampling(temperature=0.7),
        created_s=1_800_000_000,
    )


def question(**fields: object) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], **fields}


def events_of(body: bytes) -> list[Any]:
    """The server-sent events of a stream; comments are left out, [DONE] is kept as a string."""
    assert body.endswith(b"\n\n")
    blocks = [block for block in body.decode().split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def text_of(events: Sequence[Any]) -> str:
    deltas = [choice["delta"] for event in events if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)
