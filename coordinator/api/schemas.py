"""What /v1/chat/completions takes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.api.bodies import MAX_BODY_BYTES, field_error, parse_object
from coordinator.api.errors import InvalidRequest

MAX_MESSAGES = 2000
MAX_BIASES = 1024
TOKEN_ID = re.compile(r"[0-9]{1,9}", re.ASCII)
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
"""Those that have the same name and meaning on the wire (protocol.values.Sampling)."""

Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
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
    resumable: bool = False
    """The client comes back if its connection breaks (resuming.py): the answer does not end with it."""


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
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    return_token_ids: bool | None = None
    """As in vLLM: each choice also gets `token_ids`, so that programs can compare answers token by token."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def biases(self) -> dict[int, float]:
        """By token id."""
        return {int(name): bias for name, bias in (self.logit_bias or {}).items()}

    @property
    def counts_answer(self) -> bool:
        """Whether it matters which tokens are the answer's."""
        return bool(self.presence_penalty or self.frequency_penalty)

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "prompt_logprobs": (None,),
    "best_of": (None, 1),
    "audio": (None,),
    "modalities": (None, ["text"]),
}
"""Fields this version does not serve, and the values that ask for nothing."""


def parse_chat_request(body: bytes) -> ChatRequest:
    """Raises InvalidRequest with the field's path in `param`."""
    data = parse_object(body)
    refuse_unsupported(data)
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        raise field_error(error) from None
    if len(request.stop_strings) > 4 or any(not s or len(s) > 256 for s in request.stop_strings):
        raise InvalidRequest("invalid_value", "stop takes up to 4 strings of 1 to 256 characters.", "stop")
    if not all(TOKEN_ID.fullmatch(name) for name in request.logit_bias or {}):
        raise InvalidRequest("invalid_value", 'logit_bias takes token ids as names, such as "1234".', "logit_bias")
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("invalid_value", "top_logprobs needs logprobs to be true.", "top_logprobs")
    return request


def refuse_unsupported(data: dict[str, Any]) -> None:
    """Fields that would change the answer are refused, never silently dropped."""
    for name, neutral in NEUTRAL_VALUES.items():
        if name in data and data[name] not in neutral:
            raise InvalidRequest("unsupported_parameter", f"{name} is not supported by this pool yet.", name)
