"""The routes. Each one is a few lines: parse, call, format."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import FileResponse, JSONResponse, Response

from coordinator.answers import KeptAnswer
from coordinator.api import streaming
from coordinator.api.asker import asker_of
from coordinator.api.bodies import read_body
from coordinator.api.chat import Answer, ChatService
from coordinator.api.credentials import address_of
from coordinator.api.errors import ApiError, client_gone, shown
from coordinator.api.host_check import is_ours_alone
from coordinator.api.node_socket import SocketConnection
from coordinator.api.plan_view import PlanBoard
from coordinator.api.pool_view import model_views, pool_view
from coordinator.api.resuming import may_read, not_found, num_seen_of, retry_key_of
from coordinator.api.schemas import parse_chat_request
from coordinator.api.services import Services
from coordinator.handshake import Refusal, refuse
from coordinator.models.catalog import Model
from protocol.errors import CloseCode

T = TypeVar("T")


class Routes:
    """The routes for people's programs and for nodes."""

    def __init__(self, services: Services, plans: PlanBoard) -> None:
        self._plans = plans
        self._hub = services.hub
        self._env = services.env
        self._site = services.site
        self._models = services.desk.models
        self._weights = services.desk.weights
        self._chat = ChatService(services.hub, services.env, services.desk.models)
        self.router = APIRouter()
        self.router.get("/healthz")(self.healthz)
        self.router.get("/pool")(self.pool)
        self.router.get("/v1/models")(self.models)
        self.router.get("/v1/models/{name:path}")(self.model)
        self.router.post("/v1/chat/completions")(self.chat_completions)
        self.router.get("/v1/chat/completions/{answer_id}/events")(self.answer_events)
        self.router.delete("/v1/chat/completions/{answer_id}")(self.end_answer)
        self.router.get("/weights/{manifest_hash}/manifest")(self.manifest)
        self.router.get("/weights/{manifest_hash}/files/{name}")(self.weight_file)
        self.router.websocket("/node")(self.node)

    async def healthz(self) -> dict[str, Any]:
        """Alive, and whether each model can answer; a closed pool tells strangers only that it is alive."""
        if not self._site.is_open:
            return {"status": "ok"}
        ready = {name: self._hub.core.scheduler.is_ready(m.manifest_hash) for name, m in self._models.items()}
        return {"status": "ok", "models": ready}

    async def pool(self) -> dict[str, Any]:
        """What the pool page and the chat page show."""
        return pool_view(self._hub, self._models, self._site, self._plans.look())

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
        chat_request = parse_chat_request(await read_body(request))
        answer = await self._chat.start(chat_request, asker_of(request), retry_key_of(request))
        if not chat_request.stream:
            return JSONResponse(await _unless_gone(request, streaming.completion(answer)))
        return await _stream(request, answer)

    async def answer_events(self, answer_id: str, request: Request) -> Response:
        """The events of an answer behind the one that Last-Event-ID names, for whoever asked for it. They begin at
        once: what there is to say about the answer is in them."""
        answer = self._chat.resume(self._own_answer(answer_id, request), num_seen_of(request, answer_id))
        reading = streaming.Reading(answer.chunks())
        return streaming.AnswerStream(reading, streaming.sse(answer, reading))

    async def end_answer(self, answer_id: str, request: Request) -> Response:
        """Whoever asked wants no more of it."""
        self._hub.cancel(self._own_answer(answer_id, request))
        return Response(status_code=204)

    def _own_answer(self, answer_id: str, request: Request) -> KeptAnswer:
        tenant = asker_of(request).tenant
        answer = self._hub.answers.find(answer_id, lambda found: may_read(found, tenant))
        if answer is None:
            raise not_found()
        return answer

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
        """A node's connection; its hello signs the host that it asked for. Browsers send Origin and nodes do not: a web
        page must not pose as a node."""
        host, address = websocket.headers.get("host", "").lower(), address_of(websocket.scope)
        if "origin" in websocket.headers:
            await websocket.close(4403, "browser_not_allowed")
        elif not self._hub.takes_visitor(address):
            await websocket.send_denial_response(Response(status_code=503, headers={"Retry-After": "5"}))
        else:
            await websocket.accept()
            connection = SocketConnection(websocket)
            if is_ours_alone(websocket.scope, host, self._site):
                await self._hub.serve_node(connection, host, address)
            else:
                await refuse(connection, _wrong_address(host))

    def _opened(self, manifest_hash: str) -> Model:
        opened = self._weights.get(manifest_hash)
        if opened is None:
            raise ApiError(404, "manifest_not_found", "This pool has no model with that manifest.", "manifest_hash")
        return opened

    def _model_list(self) -> list[dict[str, Any]]:
        views = {view["id"]: view for view in model_views(self._hub, self._models)}
        return [
            {
                "id": name,
                "object": "model",
                "created": model.created_s,
                "owned_by": "decentllm",
                "decentllm": {key: value for key, value in views[name].items() if key != "id"},
            }
            for name, model in self._models.items()
        ]


def _wrong_address(host: str) -> Refusal:
    sentence = f"This pool does not know that {shown(host)} leads to it; its operator must set public_url to that."
    return Refusal(CloseCode.NOT_ALLOWED, "wrong_address", sentence)


async def _stream(request: Request, answer: Answer) -> Response:
    """The first chunk is waited for here: a request that is refused gets its own status, not an error in a stream."""
    reading = streaming.Reading(answer.chunks())
    try:
        first = await _unless_gone(request, reading.next())
    except BaseException:
        reading.close()
        raise
    assert first is not None, "an answer begins with a place in the queue or with its chain"
    return streaming.AnswerStream(reading, streaming.sse(answer, reading, first))


async def _unless_gone(request: Request, awaitable: Awaitable[T]) -> T:
    """The result, given up as soon as the client has left: nobody would read it."""
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise client_gone()
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
