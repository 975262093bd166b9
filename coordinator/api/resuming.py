"""Coming back to an answer: what its events are called, who may read it again, and what is needed to write it the same.

Every event of a stream has an id, "<answer>:<n>": with it the client has what the first n tokens say. Who lost the
connection asks for the rest with GET /v1/chat/completions/<answer>/events and the header Last-Event-ID (the header of
the HTML standard, section 9.2.4, which EventSource sends by itself). The id of an answer is as good as a secret: nodes
know an answer by another one.
"""

from __future__ import annotations

import re

import msgspec
from starlette.requests import Request

from coordinator.answers import KeptAnswer
from coordinator.api.errors import ApiError, InvalidRequest

LAST_EVENT_ID = "Last-Event-ID"
RETRY_KEY = "Idempotency-Key"
MAX_RETRY_KEY = 255
ID_BYTES = 16
_EVENT_ID = re.compile(r"(chatcmpl-[0-9a-f]{32}):([0-9]{1,9})", re.ASCII)
_BY_ADDRESS = "address "


class Format(msgspec.Struct, frozen=True):
    """How an answer is written. `request_digest` is of the body that asked for it."""

    created_s: int
    model: str
    stop_strings: tuple[str, ...] = ()
    with_token_ids: bool = False
    include_usage: bool = False
    request_digest: bytes = b""

    def pack(self) -> bytes:
        """For the journal."""
        return msgspec.msgpack.encode(self)


def format_of(answer: KeptAnswer) -> Format:
    """As it was packed. Raises ApiError for an answer that no API asked for."""
    try:
        return msgspec.msgpack.decode(answer.claim.note, type=Format)
    except msgspec.DecodeError:
        raise not_found() from None


def not_found() -> ApiError:
    """Also for an answer of somebody else: nobody learns which there are."""
    return ApiError(404, "answer_not_found", "There is no such answer here, or not any more.")


def event_id(answer_id: str, num_tokens: int) -> str:
    return f"{answer_id}:{num_tokens}"


def num_seen_of(request: Request, answer_id: str) -> int:
    """How many tokens of this answer the client has, by its Last-Event-ID; 0 without one. Raises InvalidRequest."""
    given = request.headers.getlist(LAST_EVENT_ID)
    if not given:
        return 0
    match = _EVENT_ID.fullmatch(given[0])
    if len(given) != 1 or match is None or match[1] != answer_id:
        raise InvalidRequest(
            "invalid_value", f"{LAST_EVENT_ID} takes the id of an event of this answer.", LAST_EVENT_ID
        )
    return int(match[2])


def retry_key_of(request: Request) -> str:
    """The client's own name for its request, "" without one. Raises InvalidRequest."""
    given = request.headers.getlist(RETRY_KEY)
    if not given:
        return ""
    if len(given) != 1 or not 1 <= len(given[0]) <= MAX_RETRY_KEY or not given[0].isprintable():
        sentence = f"{RETRY_KEY} takes one word of 1 to {MAX_RETRY_KEY} characters."
        raise InvalidRequest("invalid_value", sentence, RETRY_KEY)
    return given[0]


def other_request() -> InvalidRequest:
    """The same name for something else (draft-ietf-httpapi-idempotency-key-header, section 2.7, says 422 or 409)."""
    sentence = f"This {RETRY_KEY} was sent with another request before; use a new one for each request."
    return InvalidRequest("idempotency_mismatch", sentence, RETRY_KEY, status=409)


def may_read(answer: KeptAnswer, tenant: str) -> bool:
    """Whether this is whoever asked. Who is known by nothing but an address may have another one by now, and has shown
    that the answer is theirs by knowing its id."""
    asked = answer.order.tenant
    return asked == tenant or (asked.startswith(_BY_ADDRESS) and tenant.startswith(_BY_ADDRESS))
