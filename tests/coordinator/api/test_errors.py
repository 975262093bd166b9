"""Every error is an OpenAI error object with one clear sentence."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from coordinator.accounts import AccountError, StoreError
from coordinator.api.errors import (
    ApiError,
    InvalidRequest,
    NotAllowed,
    TooManyAttempts,
    UnknownModel,
    answer_to,
    client_gone,
    error_body,
    pool_error_body,
    shown,
    status_of,
)
from coordinator.errors import GenerationFailed, PoolError, RequestRefused


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert error_body("c", "m", status, "p") == {"error": {"message": "m", "type": kind, "param": "p", "code": "c"}}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestRefused("model_not_ready", "m", 5), 503),
        (RequestRefused("kv_room_exceeded", "m", None), 400),
        (RequestRefused("something_new", "m", None), 503),
        (GenerationFailed("no_capacity", "m"), 503),
        (GenerationFailed("non_finite", "m"), 500),
    ],
)
def test_a_pool_error_has_a_status(error: PoolError, status: int) -> None:
    assert status_of(error) == status
    assert pool_error_body(error)["error"]["code"] == error.code  # type: ignore[index]


@pytest.mark.parametrize("foreign", ["x" * 500, "\x1b[31m", "a\nb", "\ud800", "\u202e", "<b>", "'quoted'"])
def test_what_came_from_outside_is_cut_and_escaped(foreign: str) -> None:
    text = shown(foreign)
    assert text.isprintable()
    assert text.encode()
    assert len(text) <= 50


def test_an_unknown_model_lists_the_known_ones() -> None:
    assert str(UnknownModel("x", ["a", "b"])) == "There is no model 'x'; available: a, b."
    assert "no model yet" in str(UnknownModel("x", []))


def test_errors_keep_their_parts() -> None:
    assert isinstance(InvalidRequest("c", "m"), ApiError)
    error = InvalidRequest("c", "m", "p", status=413)
    assert (error.status, error.code, error.message, error.param, str(error)) == (413, "c", "m", "p", "m")


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (NotAllowed(401, "sign_in_needed", "Sign in."), 401, {"www-authenticate": "Bearer"}),
        (NotAllowed(403, "operators_only", "Operators only."), 403, {}),
        (TooManyAttempts(5.2), 429, {"retry-after": "6"}),
        (client_gone(), 499, {}),
        (AccountError("invitation_expired"), 403, {}),
        (AccountError("bad_key"), 401, {}),
        (AccountError("not_found"), 404, {}),
        (AccountError("bad_label"), 400, {}),
        (AccountError("too_many"), 409, {}),
        (RequestRefused("no_capacity", "Full.", 5.0), 503, {"retry-after": "5"}),
        (RequestRefused("kv_room_exceeded", "Too long.", None), 400, {}),
        (GenerationFailed("model_unloaded", "Gone."), 503, {}),
    ],
)
def test_each_error_has_its_status_and_headers(
    error: ApiError | PoolError, status: int, headers: dict[str, str]
) -> None:
    response = answer_to(Request({"type": "http", "state": {"request_id": "req-1"}}), error)
    body = json.loads(bytes(response.body))
    assert response.status_code == status
    assert {name: response.headers[name] for name in headers} == headers
    assert ("retry-after" in response.headers) is ("retry-after" in headers)
    assert (body["error"]["code"], body["error"]["message"]) == (error.code, error.message)
    assert body["request_id"] == "req-1"


@pytest.mark.expected_logs("request req-1 failed: pool.sqlite3 cannot be written")
def test_a_database_that_fails_is_in_the_operators_log() -> None:
    error = StoreError("store_full", "pool.sqlite3")
    assert answer_to(Request({"type": "http", "state": {"request_id": "req-1"}}), error).status_code == 500
