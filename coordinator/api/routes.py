"""The routes. Each one is a few lines: parse, call, format."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, WebSocket
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response

from coordinator.api import streaming
from coordinator.api.chat import Answer, ChatService
from coordinator.api.errors import ApiError, InvalidRequest
from coordinator.api.node_socket import SocketConnection
from coordinator.api.pool_view import model_views, pool_view
from coordinator.api.schemas import MAX_BODY_BYTES, parse_chat_request
from coordinator.hub import Hub
from coordinator.models.catalog import Model
from protocol.env import Env

T = TypeVar("T")


class Routes:
    """All routes of one coordinator."""

    def __init__(self, hub: Hub, chat: ChatService, weights: dict[str, Model], env: Env) -> None:
        self._hub = hub
        self._chat = chat
        self._weights = weights
        self._env = env
        self.router = APIRouter()
        self.router.get("/healthz")(self.healthz)
        self.router.get("/pool")(self.pool)
        self.router.get("/v1/models")(self.models)
        self.router.get("/v1/models/{name:path}")(self.model)
        self.router.post("/v1/chat/completions")(self.chat_completions)
        self.router.get("/weights/{manifest_hash}/manifest")(self.manifest)
        self.router.get("/weights/{manifest_hash}/files/{name}")(self.weight_file)
        self.router.websocket("/node")(self.node)

    async def healthz(self) -> dict[str, Any]:
        """Alive, and whether each model can answer."""
        ready = {name: self._hub.core.scheduler.is_ready(m.manifest_hash) for name, m in self._chat.models.items()}
        return {"status": "ok", "models": ready}

    async def pool(self) -> dict[str, Any]:
        """What the pool page and the chat page show."""
        return pool_view(self._hub, self._chat.models)

    async def models(self) -> dict[str, Any]:
        """OpenAI's list of models; `decentllm` adds whether each can answer now."""
        return {"object": "list", "data": self._model_list()}

    async def model(self, name: str) -> dict[str, Any]:
        """One model of the list."""
        for entry in self._model_list():
            if entry["id"] == name:
                return entry
        raise ApiError(404, "model_not_found", "There is no such model; GET /v1/models lists them.", "model")

    async def chat_completions(self, request: Request) -> Response:
        """OpenAI's chat completions, streamed or whole."""
        chat_request = parse_chat_request(await _body(request))
        answer = await self._chat.start(chat_request)
        created_s = int(self._env.clock.wall())
        if not chat_request.stream:
            return JSONResponse(await _unless_gone(request, streaming.completion(answer, created_s)))
        options = chat_request.stream_options
        return await _stream(request, answer, created_s, bool(options and options.include_usage))

    async def manifest(self, manifest_hash: str) -> Response:
        """A model's manifest; its SHA-256 is its address."""
        return Response(self._opened(manifest_hash).manifest_bytes, media_type="application/json")

    async def weight_file(self, manifest_hash: str, name: str) -> Response:
        """A file of a model, whole or by Range. Only files that the manifest names exist here."""
        path = self._opened(manifest_hash).files.get(name)
        if path is None or not await self._env.run_blocking(path.is_file):
            raise ApiError(404, "file_not_found", "The model has no such file.", "name")
        return FileResponse(path, media_type="application/octet-stream")

    async def node(self, websocket: WebSocket) -> None:
        """A node's connection. Browsers send Origin and nodes do not: a web page must not pose as a node."""
        if "origin" in websocket.headers:
            await websocket.close(4403, "browser_not_allowed")
            return
        await websocket.accept()
        await self._hub.serve_node(SocketConnection(websocket))

    def _opened(self, manifest_hash: str) -> Model:
        opened = self._weights.get(manifest_hash)
        if opened is None:
            raise ApiError(404, "manifest_not_found", "This pool has no model with that manifest.", "manifest_hash")
        return opened

    def _model_list(self) -> list[dict[str, Any]]:
        views = {view["id"]: view for view in model_views(self._hub, self._chat.models)}
        return [
            {
                "id": name,
                "object": "model",
                "created": model.created_s,
                "owned_by": "decentllm",
                "decentllm": {key: value for key, value in views[name].items() if key != "id"},
            }
            for name, model in self._chat.models.items()
        ]


async def _body(request: Request) -> bytes:
    """The body, refused before it is read when it is too large or not JSON."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        sentence = "Content-Type must be application/json."
        raise InvalidRequest("unsupported_media_type", sentence, status=415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("unsupported_encoding", "The body must not be compressed.", status=415)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise InvalidRequest("body_too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    except ClientDisconnect:
        raise _gone() from None
    return bytes(body)


async def _stream(request: Request, answer: Answer, created_s: int, include_usage: bool) -> Response:
    """The first chunk is waited for here: a request that is refused gets its own status, not an error in a stream."""
    reading = streaming.Reading(answer.chunks())
    try:
        first = await _unless_gone(request, reading.next())
    except BaseException:
        reading.close()
        raise
    assert first is not None, "an answer begins with its chain"
    return streaming.AnswerStream(reading, streaming.sse(answer, reading, first, created_s, include_usage))


async def _unless_gone(request: Request, awaitable: Awaitable[T]) -> T:
    """The result, given up as soon as the client has left: nobody would read it."""
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _gone()
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


def _gone() -> ApiError:
    """Nobody reads this answer; 499 is nginx's status for it."""
    return ApiError(499, "client_closed_request", "The client went away before the answer was complete.")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
