"""What a request says about who sends it: cookies, bearer tokens, its page's origin. Pure, on headers and scope."""

from __future__ import annotations

from enum import Enum, auto
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from coordinator.config import Site

KEY_PREFIX = "sk-"
MAX_SECRET_CHARACTERS = 256
"""No cookie or key of ours is longer; a longer one is not looked up."""


def cookie_name(site: Site) -> str:
    """Browsers take a `__Host-` cookie only over TLS, for this host alone and for all of it: no neighbour can set it
    (RFC 6265bis, section 4.1.3.2)."""
    return "__Host-decentllm" if site.is_secure else "decentllm"


def cookie_of(headers: Headers, name: str) -> str:
    """The cookie of that name, "" if there is none. Two of them are as none: one was put there by somebody else."""
    pairs = [pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";")]
    values = [value.strip('"') for found, _, value in pairs if found == name]
    return values[0] if len(values) == 1 and len(values[0]) <= MAX_SECRET_CHARACTERS else ""


def bearer_of(headers: Headers) -> str:
    """The token of an Authorization header of scheme Bearer (RFC 6750, section 2.1), "" if there is none."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def looks_like_key(token: str) -> bool:
    """Whether this is meant for us. Programs that must have a key send any word to an open pool."""
    return token.startswith(KEY_PREFIX)


class Sender(Enum):
    """Which page sent a request, as far as the browser says."""

    OWN = auto()
    FOREIGN = auto()
    UNSAID = auto()
    """A program, or a browser that says nothing."""


def sender_of(scope: Scope, site: Site) -> Sender:
    """By Sec-Fetch-Site (Fetch Metadata) or Origin (RFC 6454): pages cannot set either."""
    headers = Headers(scope=scope)
    fetch_site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if fetch_site is not None:
        return Sender.OWN if fetch_site == "same-origin" else Sender.FOREIGN
    if origin is None:
        return Sender.UNSAID
    return Sender.OWN if origin.lower() in _origins(scope, headers, site) else Sender.FOREIGN


def _origins(scope: Scope, headers: Headers, site: Site) -> set[str]:
    """This pool's own: as its links have it, and as this request (whose host is checked) came."""
    base = urlsplit(site.base_url)
    return {f"{base.scheme}://{base.netloc}".lower(), f"{scope['scheme']}://{headers.get('host', '')}".lower()}


def address_of(scope: Scope) -> str:
    """Where the request came from; "" where the server does not know (a Unix socket)."""
    client = scope.get("client")
    return str(client[0]) if client else ""
