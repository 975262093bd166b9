"""Wires the coordinator's parts together; the only file that knows every one of them."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from coordinator.api.chat import ChatService, ServedModel
from coordinator.api.http import Lifespan, build_http
from coordinator.api.routes import Routes
from coordinator.config import ConfigError, PoolConfig, check_host, check_pool_name
from coordinator.core import PoolCore
from coordinator.hub import Hub
from coordinator.models.catalog import Catalog, Model
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.scheduler.state import ModelFacts
from coordinator.token_log import MemoryTokenLog
from protocol.env import Env
from protocol.frames import FrameLimits
from protocol.values import Sampling
from protocol.version import app_version
from shell import AsyncioEnv

log = logging.getLogger(__name__)

MAX_WEBSOCKET_MESSAGE_BYTES = FrameLimits().max_payload_bytes + 2**20


def serve(config: PoolConfig) -> None:
    """Run a pool until Ctrl-C. Raises PoolError or ModelError, before anything listens, for what cannot work."""
    check_host(config.host)
    check_pool_name(config.pool_name)
    with bind(config.host, config.port) as listener:
        models = open_models(config)
        asyncio.run(_serve(config, models, listener))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the slow work begins. Raises ConfigError when the port is in use."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ConfigError(f"Cannot listen on {host} port {port}: {reason}. Choose another with --port.") from None
    return listener


def open_models(config: PoolConfig) -> list[Model]:
    """The models that the settings name, or all of the catalog. Raises ModelError."""
    catalog = Catalog(config.data_dir / "models")
    if config.models:
        return [catalog.add(spec, progress=show_progress) for spec in config.models]
    return [catalog.open(name, progress=show_progress) for name in catalog.names()]


def show_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    """One line that is rewritten on a terminal, and a line per step elsewhere."""
    amount = f": {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB" if total_bytes else ""
    ended = done_bytes >= total_bytes
    if sys.stderr.isatty():
        print(f"\r  {step}{amount}   ", end="\n" if ended else "", flush=True, file=sys.stderr)  # noqa: T201
    elif ended:
        print(f"  {step}{amount}", flush=True, file=sys.stderr)  # noqa: T201


def build_pool(config: PoolConfig, models: list[Model], env: Env) -> tuple[Hub, FastAPI]:
    """The hub and the HTTP application of a pool that serves these models."""
    hub = Hub(PoolCore(), MemoryTokenLog(), env, config.pool_name)
    for model in models:
        hub.add_model(model_facts(model))
    created_s = int(env.clock.wall())
    chat = ChatService(hub, env, {model.name: served_model(model, created_s) for model in models})
    routes = Routes(hub, chat, {model.manifest_hash: model for model in models}, env)
    return hub, build_http(routes, env.random, _lifespan(hub), app_version())


def model_facts(model: Model) -> ModelFacts:
    """What the scheduler knows of a model."""
    shape = model.shape
    return ModelFacts(
        name=model.name,
        manifest_hash=model.manifest_hash,
        context_length=shape.context_length,
        layer_numels=shape.layer_numels,
        embedding_numel=shape.embedding_numel,
        head_numel=shape.head_numel,
        kv_numel_per_token=shape.kv_numel_per_token,
    )


def served_model(model: Model, created_s: int) -> ServedModel:
    """What the API knows of a model."""
    tokenizer = ChatTokenizer.load(model.tokenizer_folder)
    return ServedModel(
        name=model.name,
        manifest_hash=model.manifest_hash,
        num_layers=model.shape.num_layers,
        context_length=model.shape.context_length,
        tokenizer=tokenizer,
        stop_tokens=tokenizer.stop_tokens(),
        default_sampling=default_sampling(model.tokenizer_folder),
        created_s=created_s,
    )


def default_sampling(folder: Path) -> Sampling:
    """What the model's makers recommend (generation_config.json); OpenAI's default, temperature 1, without it."""
    try:
        config = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    given = {name: config.get(name) for name in ("temperature", "top_p", "top_k")}
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    usable = {name: value for name, value in given.items() if isinstance(value, int | float) and value >= 0}
    return Sampling(
        temperature=min(2.0, float(usable.get("temperature", 1.0))),
        top_p=min(1.0, float(usable.get("top_p", 1.0)) or 1.0),
        top_k=int(usable.get("top_k", 0)),
    )


def _lifespan(hub: Hub) -> Lifespan:
    @asynccontextmanager
    async def lifespan(http: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(hub.run())
        running.add_done_callback(_stop_if_it_failed)
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    return lifespan


def _stop_if_it_failed(running: asyncio.Task[None]) -> None:
    """A pool whose hub has died answers nobody: better that it ends, and that whoever watches it starts it again."""
    if not running.cancelled() and running.exception() is not None:
        log.critical("the hub failed; the coordinator stops", exc_info=running.exception())
        signal.raise_signal(signal.SIGTERM)


async def _serve(config: PoolConfig, models: list[Model], listener: socket.socket) -> None:
    env = AsyncioEnv()
    _, http = build_pool(config, models, env)
    server = uvicorn.Server(
        uvicorn.Config(
            http,
            log_level="warning",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=MAX_WEBSOCKET_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=3,
        )
    )
    host, port = listener.getsockname()[:2]
    _announce(f"http://{'[' + host + ']' if ':' in host else host}:{port}", models)
    try:
        await server.serve(sockets=[listener])
    finally:
        await env.close()


def _announce(url: str, models: list[Model]) -> None:
    """What an operator needs to go on."""
    names = ", ".join(model.name for model in models)
    lines = [
        f"Models: {names}"
        if names
        else "This pool has no model yet: add one with --model FOLDER, FILE.gguf or HUB-ID.",
        f"Chat page: {url}/",
        f"API: {url}/v1",
        f"Contribute a machine: decentllm node run --join {url}",
    ]
    print("\n".join(lines), flush=True)  # noqa: T201 - this is the program's output
