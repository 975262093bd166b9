"""Every error of the API is an OpenAI error object with one clear sentence.

    ApiError(status, code, message, param)
    +-- InvalidRequest      400: the body is not what it must be; `param` names the field
    +-- UnknownModel        404

PoolError (coordinator/errors.py) is mapped by `status_of`.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from coordinator.errors import PoolError, RequestRefused

REQUEST_ID_HEADER = "x-request-id"
STATUS_OF_CODE = {"kv_room_exceeded": 400, "model_not_ready": 503, "no_capacity": 503}


class ApiError(Exception):
    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(status, code, message, param)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class InvalidRequest(ApiError):  # noqa: N818 - reads as what happened
    def __init__(self, code: str, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(status, code, message, param)


class UnknownModel(ApiError):  # noqa: N818 - reads as what happened
    def __init__(self, asked: str, available: list[str]) -> None:
        have = f"available: {', '.join(available)}" if available else "this pool has no model yet"
        super().__init__(404, "model_not_found", f"There is no model {shown(asked)}; {have}.", "model")


def shown(value: str, limit: int = 40) -> str:
    """Something that came from outside, safe in a sentence: cut, escaped, quoted."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def error_body(code: str, message: str, status: int, param: str | None = None) -> dict[str, object]:
    """The OpenAI error object."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def pool_error_body(error: PoolError) -> dict[str, object]:
    return error_body(error.code, error.message, status_of(error))


def status_of(error: PoolError) -> int:
    return STATUS_OF_CODE.get(error.code, 503 if isinstance(error, RequestRefused) else 500)


def error_response(
    request: Request, body: Mapping[str, object], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer to a failed request; it carries the request's id for the operator's log."""
    request_id = getattr(request.state, "request_id", "")
    return JSONResponse({**body, "request_id": request_id}, status, headers)
