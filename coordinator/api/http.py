"""The ASGI application: routes, error answers, headers, the built pages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.errors import REQUEST_ID_HEADER, ApiError, error_body, error_response, pool_error_body, status_of
from coordinator.api.host_check import HostMiddleware
from coordinator.api.routes import Routes
from coordinator.errors import PoolError, RequestRefused
from protocol.env import Random

log = logging.getLogger(__name__)

STATIC_FOLDER = Path(__file__).parent.parent / "web" / "static"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_http(routes: Routes, random: Random, lifespan: Lifespan, version: str) -> FastAPI:
    """Put the parts together. The interactive API documentation needs a foreign script host, so it is off."""
    http = FastAPI(
        title="DecentLLM", version=version, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    http.include_router(routes.router)
    http.router.default = Pages(http.router.default)
    http.add_exception_handler(ApiError, _api_error)
    http.add_exception_handler(PoolError, _pool_error)
    http.add_exception_handler(HTTPException, _http_error)
    http.add_exception_handler(RequestValidationError, _validation_error)
    http.add_exception_handler(Exception, _internal_error)
    http.add_middleware(HostMiddleware)
    http.add_middleware(HeaderMiddleware, random=random)
    return http


class Pages:
    """The built pages, for addresses that no route has. A mount at "/" would answer before a route says 405."""

    def __init__(self, not_found: ASGIApp) -> None:
        self._files = StaticFiles(directory=STATIC_FOLDER, html=True)
        self._not_found = not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        await (self._files if is_read else self._not_found)(scope, receive, send)


class HeaderMiddleware:
    """Gives each request its id and each response its headers. Plain ASGI: streams and disconnects pass untouched."""

    def __init__(self, app: ASGIApp, random: Random) -> None:
        self._app = app
        self._random = random

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{self._random.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request, error_body(error.code, error.message, error.status, error.param), error.status)


async def _pool_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PoolError)
    wait_s = error.retry_after_s if isinstance(error, RequestRefused) else None
    headers = {"Retry-After": f"{wait_s:.0f}"} if wait_s is not None else {}
    return error_response(request, pool_error_body(error), status_of(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    names = {404: ("not_found", "There is nothing at this address."), 405: ("method_not_allowed", "Not this method.")}
    code, sentence = names.get(error.status_code, ("http_error", str(error.detail)))
    return error_response(request, error_body(code, sentence, error.status_code), error.status_code, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    return error_response(request, error_body("invalid_value", "The address has a bad parameter.", 400), 400)


async def _internal_error(request: Request, error: Exception) -> Response:
    """A defect of ours: the log has it all, the user gets a sentence and the id to report."""
    log.exception("request %s failed", getattr(request.state, "request_id", "?"), exc_info=error)
    sentence = "Something went wrong inside the coordinator; its log has the details under this request_id."
    headers = SECURITY_HEADERS | {REQUEST_ID_HEADER: getattr(request.state, "request_id", "")}
    return error_response(request, error_body("internal_error", sentence, 500), 500, headers)  # outside the middleware
