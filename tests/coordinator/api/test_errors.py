"""Every error is an OpenAI error object with one clear sentence."""

from __future__ import annotations

import pytest

from coordinator.api.errors import ApiError, InvalidRequest, UnknownModel, error_body, pool_error_body, shown, status_of
from coordinator.errors import GenerationFailed, PoolError, RequestRefused


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
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
