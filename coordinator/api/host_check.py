"""Requests that name another host are refused: a web page whose name was pointed at this machine (DNS rebinding) must
not talk to a pool that listens on loopback."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.errors import error_body, shown


class HostMiddleware:
    """Lets pass what was sent to a loopback name; 421 (RFC 9110, section 15.5.20) for the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_loopback_name(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _refusal(Headers(scope=scope).get("host", ""))(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4421, "reason": "wrong_host"})


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(host: str) -> JSONResponse:
    sentence = f"This pool does not answer to the name {shown(host)}; use 127.0.0.1 or localhost."
    return JSONResponse(error_body("wrong_host", sentence, 421), 421)
