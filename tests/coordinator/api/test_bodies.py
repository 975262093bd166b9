"""Small JSON bodies: read strictly, refused by field."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from coordinator.api.bodies import MAX_SMALL_BODY_BYTES, Body, is_json, parse_object, read_as
from coordinator.api.errors import ApiError, InvalidRequest


class Sample(Body):
    on: bool
    count: int | None = None
    share: float = 0.0


def request(body: bytes, content_type: str = "application/json", **headers: str) -> Request:
    pieces = iter([body[start : start + 1000] for start in range(0, len(body), 1000)] or [b""])

    async def receive() -> Message:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    named = {"content-type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


async def test_a_good_body_is_what_it_says() -> None:
    body = await read_as(Sample, request(b'{"on": true, "count": 3, "share": 1}'))
    assert (body.on, body.count, body.share) == (True, 3, 1.0)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b"null", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[" * 16_000, "invalid_json", None),
        (b"\xff", "invalid_utf8", None),
        (b"{}", "missing_field", "on"),
        (b'{"on": 1}', "invalid_value", "on"),
        (b'{"on": "true"}', "invalid_value", "on"),
        (b'{"on": null}', "invalid_value", "on"),
        (b'{"on": true, "count": "3"}', "invalid_value", "count"),
        (b'{"on": true, "count": 1.5}', "invalid_value", "count"),
        (b'{"on": true, "count": true}', "invalid_value", "count"),
        (b'{"on": true, "share": NaN}', "invalid_number", None),
        (b'{"on": true, "count": ' + b"9" * 101 + b"}", "invalid_number", None),
        (b'{"on": true, "on": false}', "duplicate_key", "on"),
        (b'{"on": true, "of": false}', "unknown_field", "of"),
        (b'{"on": true, "__proto__": 1}', "unknown_field", "__proto__"),
    ],
)
async def test_a_bad_body_is_refused_by_its_field(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read_as(Sample, request(body))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


async def test_a_field_of_any_length_makes_a_short_sentence() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read_as(Sample, request(b'{"on": true, "' + b"\\u0007x" * 2000 + b'": 1}'))
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content_type": "text/plain"}, "unsupported_media_type"),
        ({"content_type": ""}, "unsupported_media_type"),
        ({"content_type": "application/json+x"}, "unsupported_media_type"),
        ({"content_encoding": "gzip"}, "unsupported_encoding"),
    ],
)
async def test_what_is_no_plain_json_is_refused_unread(headers: dict[str, str], code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read_as(Sample, request(b'{"on": true}', **headers))
    assert (caught.value.status, caught.value.code) == (415, code)


async def test_a_large_body_is_not_read_to_its_end() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read_as(Sample, request(b" " * (MAX_SMALL_BODY_BYTES + 1)))
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")


async def test_a_client_that_leaves_in_the_middle_is_noticed() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    raw = [(b"content-type", b"application/json")]
    with pytest.raises(ApiError) as caught:
        await read_as(Sample, Request({"type": "http", "method": "POST", "headers": raw}, receive))
    assert caught.value.status == 499


@pytest.mark.parametrize(
    ("value", "is_it"), [("application/json", True), (" APPLICATION/JSON ; x=y", True), ("", False)]
)
def test_the_media_type_is_compared_without_parameters(value: str, is_it: bool) -> None:
    assert is_json(value) is is_it


def test_an_object_is_parsed_as_it_is() -> None:
    data: dict[str, Any] = parse_object(b'{"a": [1, 2.5, "x", null]}')
    assert data == {"a": [1, 2.5, "x", None]}
