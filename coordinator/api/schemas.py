"""What /v1/chat/completions takes. Strict: "true" is not a boolean and NaN is not a number."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.api.errors import InvalidRequest, shown

MAX_BODY_BYTES = 4 * 2**20
MAX_MESSAGES = 2000
MAX_DIGITS = 100
"""Of a whole number; Python's own limit is 4,300."""

Text = Annotated[str, Field(max_length=MAX_BODY_BYTES)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(_Part):
    """One part of a message given as a list: only text is supported."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def template_role(self) -> str:
        """Chat templates know "system"; "developer" is OpenAI's newer name for it."""
        return "system" if self.role == "developer" else self.role


class StreamOptions(_Part):
    include_usage: bool = False


class ChatRequest(_Part):
    """The supported fields. Unknown ones are ignored, as OpenAI-compatible servers do; fields that would change the
    answer and are not supported are refused by name (`refuse_unsupported`)."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    stop: Annotated[str, Field(min_length=1, max_length=256)] | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    return_token_ids: bool | None = None
    """As in vLLM: each choice also gets `token_ids`, so that programs can compare answers token by token."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "best_of": (None, 1),
    "audio": (None,),
    "modalities": (None, ["text"]),
}
"""Fields this version does not serve, and the values that ask for nothing."""


def parse_chat_request(body: bytes) -> ChatRequest:
    """Raises InvalidRequest with the field's path in `param`."""
    data = _parse_json(body)
    if not isinstance(data, dict):
        raise InvalidRequest("invalid_json", "The body must be a JSON object.")
    refuse_unsupported(data)
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        raise _field_error(error) from None
    if len(request.stop_strings) > 4 or any(not s or len(s) > 256 for s in request.stop_strings):
        raise InvalidRequest("invalid_value", "stop takes up to 4 strings of 1 to 256 characters.", "stop")
    return request


def refuse_unsupported(data: dict[str, Any]) -> None:
    """Fields that would change the answer are refused, never silently dropped."""
    for name, neutral in NEUTRAL_VALUES.items():
        if name in data and data[name] not in neutral:
            raise InvalidRequest("unsupported_parameter", f"{name} is not supported by this pool yet.", name)


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


def _field_error(error: ValidationError) -> InvalidRequest:
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
    code = "missing_field" if fault["type"] == "missing" else "invalid_value"
    sentence = f"{path} is missing." if code == "missing_field" else f"{path}: {fault['msg']}."
    return InvalidRequest(code, sentence, path)
