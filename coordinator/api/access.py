"""Who may do what. Everything needs somebody who is signed in, unless it is named here: a route that nobody thought of
is closed on a closed pool.

Plain ASGI, so that streams and disconnects pass untouched. It puts the Caller into the request's state."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.accounts import AccountError, Accounts, Caller, Role, StoreError
from coordinator.api.bodies import is_json, not_json
from coordinator.api.credentials import (
    MAX_SECRET_CHARACTERS,
    Sender,
    address_of,
    bearer_of,
    cookie_name,
    cookie_of,
    looks_like_key,
    sender_of,
)
from coordinator.api.errors import ApiError, NotAllowed, TooManyAttempts, answer_to, status_of
from coordinator.config import Site
from coordinator.hub import Hub
from coordinator.throttle import Throttle
from protocol.env import Env

NOBODY = Caller(role=None)
SESSION_PATH = "/api/session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110, section 9.2.1."""
MAX_GOOD_KEYS = 1024


class Need(Enum):
    """What a request must have."""

    NOTHING = auto()
    SESSION = auto()
    """Nothing; but a cookie is looked at."""
    PERSON = auto()
    """On a closed pool: a session or a key."""
    NODE = auto()
    """On a closed pool: the token that a node got with its welcome."""
    OPERATOR = auto()
    """An operator's session, on every pool; a key does not do."""


NEEDS: dict[str, Need] = {
    "/healthz": Need.NOTHING,
    "/node": Need.NOTHING,  # the hub checks who a node is
    SESSION_PATH: Need.SESSION,
}
"""Exact addresses; the built pages are the only others that need nothing."""
NEEDS_BELOW: tuple[tuple[str, Need], ...] = (("/api/operator/", Need.OPERATOR), ("/weights/", Need.NODE))


@dataclass(frozen=True, slots=True)
class Gate:
    """Tells whether a request may pass. Raises NotAllowed, InvalidRequest or TooManyAttempts when it may not."""

    accounts: Accounts
    hub: Hub
    site: Site
    env: Env
    throttle: Throttle
    pages: Collection[str] = ()
    good_keys: dict[str, None] = field(default_factory=dict)
    """Digests of keys that were good lately: a stranger's guesses do not hold up who shares an address with him."""

    def need_of(self, path: str) -> Need:
        """What this address needs. Unknown addresses too, so that nobody outside learns which there are."""
        if path in self.pages:
            return Need.NOTHING
        below = next((need for start, need in NEEDS_BELOW if f"{path}/".startswith(start)), Need.PERSON)
        return NEEDS.get(path, below)

    async def admit(self, scope: Scope) -> Caller:
        """Who sends this, if it may pass."""
        need = self.need_of(scope["path"])
        if need is Need.NOTHING:
            return NOBODY
        headers = Headers(scope=scope)
        if need is Need.NODE:
            self._check_node(headers)
            return NOBODY
        key = bearer_of(headers) if need is Need.PERSON else ""
        if looks_like_key(key) or (key and not self.site.is_open):
            return await self._caller_of_key(key, address_of(scope))
        cookie = cookie_of(headers, cookie_name(self.site))
        caller = await self.env.run_blocking(self.accounts.caller_of_cookie, cookie) if cookie else NOBODY
        self._check_role(need, caller)
        self._check_sender(scope, need, caller)
        return caller

    def _check_node(self, headers: Headers) -> None:
        token = bearer_of(headers)
        if not (self.site.is_open or (0 < len(token) <= MAX_SECRET_CHARACTERS and self.hub.is_weights_token(token))):
            raise NotAllowed(401, "weights_token_needed", "Weights are for this pool's nodes, while they are in it.")

    def _check_role(self, need: Need, caller: Caller) -> None:
        if need is Need.OPERATOR and caller.role is not Role.OPERATOR:
            raise operators_only()
        if need is Need.PERSON and caller.role is None and not self.site.is_open:
            sentence = "This pool is by invitation: open your invitation link, or send an API key as a bearer token."
            raise NotAllowed(401, "sign_in_needed", sentence)

    def _check_sender(self, scope: Scope, need: Need, caller: Caller) -> None:
        """What a browser sends along by itself must not be enough to change anything (cross-site request forgery)."""
        if scope["method"] in SAFE_METHODS or (need is Need.PERSON and caller.role is None):
            return
        sender = sender_of(scope, self.site)
        if sender is Sender.FOREIGN or (sender is Sender.UNSAID and need is Need.OPERATOR):
            raise NotAllowed(403, "cross_site", "Only this pool's own pages may do that.")
        if need is Need.OPERATOR and scope["method"] != "DELETE":
            _check_is_json(scope)

    async def _caller_of_key(self, key: str, address: str) -> Caller:
        """Raises NotAllowed for a key that is not good, TooManyAttempts for the eleventh of them."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        is_known = digest in self.good_keys
        if not is_known and (wait_s := self.throttle.take(address, self.env.clock.monotonic())):
            raise TooManyAttempts(wait_s)
        try:
            caller = await self.env.run_blocking(self.accounts.caller_of_key, key[: MAX_SECRET_CHARACTERS + 1])
        except AccountError as error:
            self.good_keys.pop(digest, None)
            raise NotAllowed(status_of(error), error.code, error.message) from None
        if not is_known:
            self.throttle.give_back(address, self.env.clock.monotonic())
            self._remember(digest)
        return caller

    def _remember(self, digest: str) -> None:
        while len(self.good_keys) >= MAX_GOOD_KEYS:
            del self.good_keys[next(iter(self.good_keys))]
        self.good_keys[digest] = None


class AccessMiddleware:
    """Asks the gate, for requests and for websockets."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["caller"] = await self._gate.admit(scope)
            except (ApiError, StoreError) as error:
                await answer_to(Request(scope), error)(scope, receive, send)
                return
        elif scope["type"] == "websocket" and self._gate.need_of(scope["path"]) is not Need.NOTHING:
            await send({"type": "websocket.close", "code": 4404, "reason": "not_found"})
            return
        await self._app(scope, receive, send)


def caller_of(request: Request) -> Caller:
    """Who sent this request, as the gate found; nobody where it did not look."""
    caller = getattr(request.state, "caller", NOBODY)
    assert isinstance(caller, Caller)
    return caller


def operator_of(request: Request) -> Caller:
    """The operator who sent this request. Raises NotAllowed: the second lock of the operator's routes."""
    caller = caller_of(request)
    if caller.role is not Role.OPERATOR:
        raise operators_only()
    return caller


def operators_only() -> NotAllowed:
    return NotAllowed(403, "operators_only", "Only an operator of this pool may do that; open an operator link first.")


def _check_is_json(scope: Scope) -> None:
    if not is_json(Headers(scope=scope).get("content-type", "")):
        raise not_json()
