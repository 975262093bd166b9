"""The ASGI application: routes, who may use them, error answers, headers, the built pages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.access import AccessMiddleware, Gate
from coordinator.api.errors import REQUEST_ID_HEADER, ApiError, answer_to, error_body, error_response
from coordinator.api.host_check import HostMiddleware
from coordinator.api.operator_routes import OperatorRoutes
from coordinator.api.plan_view import PlanBoard
from coordinator.api.routes import Routes
from coordinator.api.services import Services
from coordinator.api.session_routes import SessionRoutes
from coordinator.config import Site
from coordinator.errors import PoolError
from coordinator.throttle import Throttle
from protocol.env import Random

log = logging.getLogger(__name__)

STATIC_FOLDER = Path(__file__).parent.parent / "web" / "static"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
        "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

HSTS = {"Strict-Transport-Security": "max-age=31536000"}
"""RFC 6797. Not with a certificate of the pool's own: section 8.4 forbids the visitor to go on past its warning."""
NO_STORE = {"Cache-Control": "no-store"}
PAGES = {"/": "/index.html", "/operator": "/operator.html"}
"""Pages whose address is not the name of their file."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_http(services: Services, lifespan: Lifespan, version: str) -> FastAPI:
    """The application of one coordinator.

        desk = ModelDesk(hub, env, data_dir / "models")     # serves nothing yet
        desk.put(model)                                     # for each model that is there from the start
        http = build_http(Services(hub, desk, accounts, site, env), lifespan, app_version())

    `lifespan` runs the hub; the desk is closed here, when the application ends. The interactive API documentation
    needs a foreign script host, so it is off."""
    http = FastAPI(
        title="DecentLLM",
        version=version,
        lifespan=_closing(services, lifespan),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    throttle = Throttle()
    plans = PlanBoard(services.hub, services.env.clock)
    for routes in (Routes(services, plans), SessionRoutes(services, throttle), OperatorRoutes(services, plans)):
        http.include_router(routes.router)
    http.router.default = Pages(http.router.default)
    for kind in (ApiError, PoolError):
        http.add_exception_handler(kind, _known_error)
    http.add_exception_handler(HTTPException, _http_error)
    http.add_exception_handler(RequestValidationError, _validation_error)
    http.add_exception_handler(Exception, _internal_error)
    gate = Gate(services.accounts, services.hub, services.site, services.env, throttle, page_addresses())
    http.add_middleware(AccessMiddleware, gate=gate)  # the one added last is asked first
    http.add_middleware(HostMiddleware, allowed_hosts=services.site.allowed_hosts)
    http.add_middleware(HeaderMiddleware, random=services.env.random, site=services.site)
    return http


def _closing(services: Services, lifespan: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def closing(http: FastAPI) -> AsyncIterator[None]:
        async with lifespan(http):
            try:
                yield
            finally:
                await services.desk.close()

    return closing


def page_addresses() -> frozenset[str]:
    """Where the built pages and what they consist of are."""
    files = (path.relative_to(STATIC_FOLDER).as_posix() for path in STATIC_FOLDER.rglob("*") if path.is_file())
    return frozenset({f"/{file}" for file in files} | set(PAGES))


class Pages:
    """The built pages, for addresses that no route has. A mount at "/" would answer before a route says 405."""

    def __init__(self, not_found: ASGIApp) -> None:
        self._files = StaticFiles(directory=STATIC_FOLDER)
        self._not_found = not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            path: str = PAGES.get(scope["path"]) or scope["path"]
            await self._files({**scope, "path": path, "raw_path": path.encode()}, receive, send)
        else:
            await self._not_found(scope, receive, send)


class HeaderMiddleware:
    """Gives each request its id and each response its headers. Plain ASGI: streams and disconnects pass untouched."""

    def __init__(self, app: ASGIApp, random: Random, site: Site) -> None:
        self._app = app
        self._random = random
        self._always = SECURITY_HEADERS | (HSTS if site.is_secure and not site.pin else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{self._random.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        added = self._always | (NO_STORE if scope["path"].startswith("/api/") else {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                for name, value in added.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError | PoolError)
    return answer_to(request, error)


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
    own = {REQUEST_ID_HEADER: getattr(request.state, "request_id", "")}  # this answer goes past the middleware
    body = error_body("internal_error", sentence, 500)
    return error_response(request, body, 500, SECURITY_HEADERS | NO_STORE | own)
