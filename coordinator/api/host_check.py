"""Requests that name another host are refused: a web page whose name was pointed at this machine (DNS rebinding) must
not talk to the pool as if it were the pool's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.errors import ApiError, answer_to, shown
from coordinator.config import DEFAULT_PORTS, Site

LOOPBACK_NAME = "localhost"
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


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
    return _split(host)[0]


def _split(host: str) -> tuple[str, str]:
    """Name and port, "" for none."""
    name, _, port = host.rpartition(":")
    if not (port.isascii() and port.isdigit()) or host.endswith("]"):
        name, port = host, ""
    return name.removeprefix("[").removesuffix("]").lower(), port


def is_ours_alone(scope: Scope, host: str, site: Site) -> bool:
    """Whether a Host header can mean nobody but this coordinator: the address in its links, or the socket that the
    connection came in by.

    A node signs its hello for the host that it asked for. Were any address good enough here, another pool that a node
    joins could pass our challenge on to it, under its own address, and pose as that node with us."""
    base = urlsplit(site.base_url)
    if _place(host, base.scheme) == _place(
        base.netloc, base.scheme
    ):  # a proxy may not say by which scheme it was asked
        return True
    name, port = _place(host, scope["scheme"])
    server_host, server_port = scope.get("server") or ("", None)
    return port == server_port and (name in site.allowed_hosts or _is_same_address(name, server_host))


def _place(host: str, scheme: str) -> tuple[str, int]:
    """Name and port of a Host header; a port that is not there is the scheme's own."""
    name, port = _split(host)
    return name, int(port[:6]) if port else DEFAULT_PORTS[_HTTP_SCHEMES.get(scheme, scheme)]


def _is_same_address(name: str, other: str) -> bool:
    try:
        return _plain(ipaddress.ip_address(name)) == _plain(ipaddress.ip_address(other))
    except ValueError:
        return False


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> object:
    """A socket that takes both families shows IPv4 addresses as IPv6 (RFC 4291, section 2.5.5.2)."""
    return (address.ipv4_mapped if address.version == 6 else None) or address


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
