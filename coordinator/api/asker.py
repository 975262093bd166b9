"""Who asks for an answer, and how long it would wait for one: what the queue is fair by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request

from coordinator.accounts import Caller
from coordinator.api.access import caller_of
from coordinator.api.credentials import address_of
from coordinator.api.errors import InvalidRequest

TIMEOUT_HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 86_400.0
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?\Z")


@dataclass(frozen=True, slots=True)
class Asker:
    """`tenant` is the id of a key or of a signed-in browser, never its secret; on an open pool else the address.

    `deadline_s`: after so many seconds in the queue the answer is wanted no more; None: nothing was said."""

    tenant: str = ""
    deadline_s: float | None = None


def asker_of(request: Request) -> Asker:
    """Who sent this request. Raises InvalidRequest for a timeout that is none."""
    return Asker(tenant_of(caller_of(request), address_of(request.scope)), deadline_of(request))


def tenant_of(caller: Caller, address: str) -> str:
    """Requests of one tenant share its turn in the queue, and its part of what is cached."""
    if caller.key_id:
        return f"key {caller.key_id}"
    return f"session {caller.session_id}" if caller.session_id else f"address {address}"


def deadline_of(request: Request) -> float | None:
    """The value of the X-Request-Timeout header, in seconds. Raises InvalidRequest."""
    given = request.headers.getlist(TIMEOUT_HEADER)
    if not given:
        return None
    seconds = float(given[0]) if len(given) == 1 and _SECONDS.match(given[0]) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        sentence = f"{TIMEOUT_HEADER} takes one number of seconds, greater than 0 and at most {MAX_TIMEOUT_S:.0f}."
        raise InvalidRequest("invalid_value", sentence, TIMEOUT_HEADER)
    return seconds
