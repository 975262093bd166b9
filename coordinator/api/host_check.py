"""Requests that name another host are refused: a web page whose name was pointed at this machine (DNS rebinding) must
not talk to the pool as if it were the pool's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.errors import ApiError, answer_to, shown

LOOPBACK_NAME = "localhost"


class HostMiddleware:
    """Lets pass what was sent to a name of the pool or to an address; 421 (RFC 9110, section 15.5.20) for the rest.

    Rebinding needs a name, so that an address of numbers is always what the visitor meant."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] = ()) -> None:
        self._app = app
        self._allowed = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = Headers(scope=scope).getlist("host") if scope["type"] in ("http", "websocket") else []
        if scope["type"] == "lifespan" or (len(hosts) == 1 and self._is_ours(hosts[0])):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await answer_to(Request(scope), _refusal(", ".join(hosts)))(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4421, "reason": "wrong_host"})

    def _is_ours(self, host: str) -> bool:
        name = name_of(host)
        return name == LOOPBACK_NAME or name in self._allowed or is_address(name)


def name_of(host: str) -> str:
    """A Host header without its port, in lower case and without an IPv6 address's brackets."""
    name, _, port = host.rpartition(":")
    name = name if port.isdigit() and not host.endswith("]") else host
    return name.removeprefix("[").removesuffix("]").lower()


def is_address(name: str) -> bool:
    """Whether this is an address of one machine, in numbers; 0.0.0.0 is none, though browsers take it for loopback."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    address = (address.ipv4_mapped if address.version == 6 else None) or address
    return not (address.is_unspecified or address.is_multicast)


def _refusal(host: str) -> ApiError:
    sentence = f"This pool does not answer to the name {shown(host)}; use the address in its links."
    return ApiError(421, "wrong_host", sentence)
