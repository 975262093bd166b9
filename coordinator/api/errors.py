"""Every error of the API is an OpenAI error object with one clear sentence.

    ApiError(status, code, message, param)
    +-- InvalidRequest      400: the body is not what it must be; `param` names the field
    +-- UnknownModel        404
    +-- NotAllowed          401 or 403: who asks may not, or did not say who it is
    +-- TooManyAttempts     429: keys or links that were not good, too often

PoolError (coordinator/errors.py) is mapped by `status_of`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from coordinator.accounts import AccountError, StoreError
from coordinator.errors import PoolError, RequestRefused

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
STATUS_OF_CODE = {
    "kv_room_exceeded": 400,
    "model_not_ready": 503,
    "model_unloaded": 503,
    "no_capacity": 503,
    "overloaded": 503,
    "failed_poison": 500,
    "bad_key": 401,
    "key_expired": 401,
    "not_found": 404,
    "bad_label": 400,
    "bad_expiry": 400,
    "bad_max_uses": 400,
    "allows_nothing": 400,
    "too_many": 409,
    "store_busy": 503,
    "storage_unavailable": 503,
}
TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(status, code, message, param)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its body."""
        return {}


class InvalidRequest(ApiError):  # noqa: N818 - reads as what happened
    def __init__(self, code: str, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(status, code, message, param)


class UnknownModel(ApiError):  # noqa: N818 - reads as what happened
    def __init__(self, asked: str, available: list[str]) -> None:
        have = f"available: {', '.join(available)}" if available else "this pool has no model yet"
        super().__init__(404, "model_not_found", f"There is no model {shown(asked)}; {have}.", "model")


class NotAllowed(ApiError):  # noqa: N818 - reads as what happened
    """401: nobody is signed in, or with a bad key. 403: somebody is, and may not."""

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110, section 11.6.1: a 401 names the scheme."""
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


class TooManyAttempts(ApiError):  # noqa: N818 - reads as what happened
    def __init__(self, wait_s: float) -> None:
        seconds = math.ceil(wait_s)
        sentence = f"Too many keys or links from your address were not good; try again in {seconds} s."
        super().__init__(429, "too_many_attempts", sentence)
        self.wait_s = seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.wait_s)}


def client_gone() -> ApiError:
    """Nobody reads this answer; 499 is nginx's status for it."""
    return ApiError(499, "client_closed_request", "The client went away before the answer was complete.")


def shown(value: str, limit: int = 40) -> str:
    """Something that came from outside, safe in a sentence: cut, escaped, quoted."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def error_body(code: str, message: str, status: int, param: str | None = None) -> dict[str, object]:
    """The OpenAI error object."""
    kind = TYPE_OF_STATUS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def pool_error_body(error: PoolError) -> dict[str, object]:
    return error_body(error.code, error.message, status_of(error))


def status_of(error: PoolError) -> int:
    """By its code; else by what it is: who is refused by the accounts may not."""
    defaults = {RequestRefused: 503, AccountError: 403}
    return STATUS_OF_CODE.get(error.code, next((s for kind, s in defaults.items() if isinstance(error, kind)), 500))


def answer_to(request: Request, error: ApiError | PoolError) -> JSONResponse:
    """The answer to a failed request; it carries the request's id for the operator's log."""
    if isinstance(error, ApiError):
        return error_response(request, api_error_body(error), error.status, error.headers)
    wait_s = error.retry_after_s if isinstance(error, RequestRefused) else None
    if isinstance(error, StoreError):
        log.error("request %s failed: %s", getattr(request.state, "request_id", "?"), error)
    headers = {"Retry-After": f"{wait_s:.0f}"} if wait_s is not None else {}
    return error_response(request, pool_error_body(error), status_of(error), headers)


def api_error_body(error: ApiError) -> dict[str, object]:
    return error_body(error.code, error.message, error.status, error.param)


def error_response(
    request: Request, body: Mapping[str, object], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error object with the request's id."""
    request_id = getattr(request.state, "request_id", "")
    return JSONResponse({**body, "request_id": request_id}, status, headers)
