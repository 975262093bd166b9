"""The whole HTTP side over a hub with fake nodes that say a text of the test's choice."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI

from coordinator.accounts import Accounts, Store
from coordinator.api.chat import ServedModel
from coordinator.api.http import build_http
from coordinator.api.model_desk import MakeCatalog, ModelDesk
from coordinator.api.services import Services
from coordinator.config import Site
from coordinator.journal import Journal
from coordinator.models.catalog import Model
from coordinator.models.errors import PromptError
from coordinator.models.tokenizer import ChatTokenizer
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.asgi_client import JSON, AsgiClient, Reply
from tests.fakes.fake_node import FakeNode, Rule
from tests.fakes.hub_driver import HubDriver, running_hub
from tests.fakes.virtual_env import VirtualEnv

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

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()

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


def speaker(number: int = 1, text: str = TEXT, max_layers: int = 8, *, caches: bool = False) -> FakeNode:
    return FakeNode(number, facts.spec(max_layers), rule=says(text), caches=caches)


OPEN_SITE = Site("http://127.0.0.1:8000", "", False, frozenset({"localhost"}), True, "test pool")
CLOSED_SITE = Site("https://pool.test:8443", "ab" * 32, True, frozenset({"pool.test"}), False, "test pool")


@dataclass
class Browser:
    """A visitor of the pool's own pages: keeps the cookie, says where it comes from."""

    client: AsgiClient
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str) -> Reply:
        return await self._send("GET", path, b"", {})

    async def post(self, path: str, data: object = None) -> Reply:
        return await self._send("POST", path, json.dumps({} if data is None else data).encode(), JSON)

    async def delete(self, path: str) -> Reply:
        return await self._send("DELETE", path, b"{}", JSON)

    async def sign_in(self, token: str) -> Reply:
        return await self.post("/api/session", {"token": token})

    async def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        own = {"origin": self.client.base_url} if method != "GET" else {}
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        reply = await self.client.request(method, path, body, {**headers, **own, **(cookie if self.cookies else {})})
        if set_cookie := reply.headers.get("set-cookie"):
            name, _, value = set_cookie.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return reply


@dataclass
class ApiDriver:
    http: FastAPI
    client: AsgiClient
    pool: HubDriver
    nodes: tuple[FakeNode, ...]
    services: Services

    @property
    def accounts(self) -> Accounts:
        return self.services.accounts

    def browser(self, address: str = "127.0.0.1") -> Browser:
        """A new visitor, who is not signed in."""
        return Browser(AsgiClient(self.http, self.client.base_url, address))

    async def operator(self) -> Browser:
        """A visitor who has opened an operator's link."""
        browser = self.browser()
        reply = await browser.sign_in(self.accounts.make_operator_link())
        assert reply.json()["role"] == "operator", reply.body
        return browser

    def invitation(self, *, allows_nodes: bool = False) -> str:
        """The token of a new invitation to chat."""
        terms = {"allows_chat": True, "allows_nodes": allows_nodes, "max_uses": None, "expires_in_s": None}
        return self.accounts.invite("friends", **terms)[1]  # type: ignore[arg-type]

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
    *nodes: FakeNode,
    context_length: int = 1000,
    files: Mapping[str, Path] | None = None,
    site: Site = OPEN_SITE,
    make_catalog: MakeCatalog | None = None,
    journal: Journal | None = None,
) -> AsyncIterator[ApiDriver]:
    """An API whose pool has these nodes; none means that the model has nobody to answer."""
    facts_of_model = facts.model(context_length=context_length)
    async with running_hub(*nodes, model=facts_of_model, journal=journal) as pool:
        env = pool.world.env("coordinator")
        with services_of(pool, env, site, make_catalog) as services:
            services.desk.models[NAME] = served_model(context_length)
            services.desk.weights[facts.DIGEST] = fake_model(files or {})
            http = build_http(services, cast(Any, None), "test")
            yield ApiDriver(http, AsgiClient(http, site.base_url), pool, nodes, services)
            await services.desk.close()


@contextmanager
def services_of(
    pool: HubDriver, env: VirtualEnv, site: Site = OPEN_SITE, make_catalog: MakeCatalog | None = None
) -> Iterator[Services]:
    """Real accounts in a folder of their own; a desk that serves nothing."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "pool.sqlite3")
        try:
            desk = ModelDesk(pool.hub, env, Path(folder) / "models", make_catalog, lambda model, _: served_as(model))
            yield Services(pool.hub, desk, Accounts(store, env.random, env.clock.wall), site, env)
        finally:
            store.close()


def fake_model(files: Mapping[str, Path], name: str = NAME, digest: str = facts.DIGEST, num_layers: int = 8) -> Model:
    """A model of the catalog, without its files."""
    sizes = facts.model(num_layers, digest=digest)
    return cast(
        Model,
        SimpleNamespace(
            name=name,
            manifest_hash=digest,
            manifest_bytes=MANIFEST,
            manifest=SimpleNamespace(
                files=(SimpleNamespace(size_bytes=1000), SimpleNamespace(size_bytes=24)), quantisation=None
            ),
            files=files,
            shape=sizes,
        ),
    )


def served_as(model: Model) -> ServedModel:
    """What the API knows of it."""
    return replace(
        served_model(), name=model.name, manifest_hash=model.manifest_hash, num_layers=model.shape.num_layers
    )


def served_model(context_length: int = 1000) -> ServedModel:
    return ServedModel(
        name=NAME,
        manifest_hash=facts.DIGEST,
        num_layers=8,
        context_length=context_length,
        tokenizer=cast(ChatTokenizer, FakeTokenizer()),
        stop_tokens=(STOP,),
        vocab_size=1000,
        default_sampling=Sampling(temperature=0.7),
        created_s=1_800_000_000,
    )


def question(**fields: object) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], **fields}


def events_of(body: bytes) -> list[Any]:
    """The server-sent events of a stream; comments are left out, [DONE] is kept as a string."""
    return [item if item == "[DONE]" else json.loads(item) for _, item in _blocks(body)]


def ids_of(body: bytes) -> list[str]:
    """The events' ids, "" for one without."""
    return [name for name, _ in _blocks(body)]


def _blocks(body: bytes) -> list[tuple[str, str]]:
    assert body.endswith(b"\n\n")
    blocks = [block for block in body.decode().split("\n\n") if block and not block.startswith(":")]
    found = [re.fullmatch(r"(?:id: ([^\n]*)\n)?data: ([^\n]*)", block) for block in blocks]
    assert all(found)
    return [(match[1] or "", match[2]) for match in found if match]


def text_of(events: Sequence[Any]) -> str:
    deltas = [choice["delta"] for event in events if event != "[DONE]" for choice in event.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)
