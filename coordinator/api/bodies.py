"""Reading request bodies: what is refused before, while and after they are read. Strict: "true" is not a boolean and
NaN is not a number."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from coordinator.api.errors import InvalidRequest, client_gone, shown

MAX_BODY_BYTES = 4 * 2**20
MAX_SMALL_BODY_BYTES = 16 * 2**10
"""Of everything but a chat."""
MAX_DIGITS = 100
"""Of a whole number; Python's own limit is 4,300."""


class Body(BaseModel):
    """Base of what routes take. A field that is not known is refused: it was meant to do something."""

    model_config = ConfigDict(strict=True, extra="forbid")


B = TypeVar("B", bound=Body)


async def read_as(kind: type[B], request: Request) -> B:
    """A small JSON body as this type. Raises InvalidRequest with the field's path in `param`."""
    data = parse_object(await read_body(request, MAX_SMALL_BODY_BYTES))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise field_error(error) from None


async def read_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body, refused before it is read when it is not JSON, and while it is read when it is too large."""
    if not is_json(request.headers.get("content-type", "")):
        raise not_json()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("unsupported_encoding", "The body must not be compressed.", status=415)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise InvalidRequest("body_too_large", f"The body is larger than {max_bytes} bytes.", status=413)
    except ClientDisconnect:
        raise client_gone() from None
    return bytes(body)


def is_json(content_type: str) -> bool:
    return content_type.split(";")[0].strip().lower() == "application/json"


def not_json() -> InvalidRequest:
    return InvalidRequest("unsupported_media_type", "Content-Type must be application/json.", status=415)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, each field once. Raises InvalidRequest."""
    data = _parse_json(body)
    if not isinstance(data, dict):
        raise InvalidRequest("invalid_json", "The body must be a JSON object.")
    return data


def field_error(error: ValidationError) -> InvalidRequest:
    """The first fault, with its path as people write it: messages[3].role."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in ("str", "list[TextPart]", "list[str]", "constrained-str"):
            break  # which arm of a union was tried last says nothing to the user
        else:
            path += f".{part}" if path else str(part)
    path = shown(path, 100)[1:-1]
    if fault["type"] == "missing":
        return InvalidRequest("missing_field", f"{path} is missing.", path)
    if fault["type"] == "extra_forbidden":
        return InvalidRequest("unknown_field", f"There is no field {path} here.", path)
    return InvalidRequest("invalid_value", f"{path}: {fault['msg']}." if path else f"{fault['msg']}.", path or None)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode(), parse_constant=_refuse_constant, parse_int=_whole_number, object_pairs_hook=_unique_keys
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest("invalid_utf8", f"The body is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        sentence = f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}."
        raise InvalidRequest("invalid_json", sentence) from None
    except RecursionError:
        raise InvalidRequest("invalid_json", "The body is nested too deep.") from None


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidRequest("invalid_number", f"The body has a number of {len(digits)} digits, limit {MAX_DIGITS}.")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest("invalid_number", f"{name} is not a JSON number.")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise InvalidRequest("duplicate_key", f"The field {shown(name)} appears twice.", shown(name)[1:-1])
        data[name] = value
    return data
