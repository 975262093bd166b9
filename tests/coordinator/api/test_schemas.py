"""What /v1/chat/completions takes: every bad body gets a code, a field and a sentence."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.errors import InvalidRequest
from coordinator.api.schemas import MAX_MESSAGES, NEUTRAL_VALUES, ChatRequest, parse_chat_request

USER = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {"model": "m", "messages": [USER]}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps(GOOD | fields).encode())


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat_request(body)
    error = caught.value
    assert len(error.message) < 300
    assert error.message.isprintable()
    assert json.dumps({"p": error.param, "m": error.message}, ensure_ascii=False).encode()
    return error


def test_a_plain_request_is_taken() -> None:
    request = parse()
    assert (request.model, request.stream, request.wanted_tokens, request.stop_strings) == ("m", False, None, ())
    assert request.messages[0].text == "Hi"


def test_all_supported_fields_are_taken() -> None:
    request = parse(
        stream=True, stream_options={"include_usage": True}, temperature=0, top_p=0.5, top_k=40, seed=2**63 - 1,
        max_tokens=5, stop=["a", "b"], n=1,
    )  # fmt: skip
    assert request.stream
    assert request.stream_options is not None
    assert request.stream_options.include_usage
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0, 0.5, 40, 2**63 - 1)
    assert (request.wanted_tokens, request.stop_strings) == (5, ("a", "b"))


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).wanted_tokens == 7


def test_unknown_fields_are_ignored_and_null_means_not_given() -> None:
    assert parse(user="u", metadata={"a": 1}, temperature=None, stream=None, stop=None, n=None).stream_options is None


def test_content_may_come_in_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"


@pytest.mark.parametrize(
    ("role", "known_as"), [("developer", "system"), ("system", "system"), ("assistant", "assistant")]
)
def test_roles_are_given_to_the_template_as_it_knows_them(role: str, known_as: str) -> None:
    assert parse(messages=[{"role": role, "content": "x"}]).messages[0].template_role == known_as


# ---------------------------------------------------------------- not JSON, or not an object


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"null", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"x"', "invalid_json"),
        (b"{", "invalid_json"),
        (b"model=m", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b'{"model":"\xff"}', "invalid_utf8"),
        (b"\xff\xfe{\x00}\x00", "invalid_utf8"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
        (b'{"model":"m\n"}', "invalid_json"),
        (b'{"seed":NaN}', "invalid_number"),
        (b'{"seed":Infinity}', "invalid_number"),
        (b'{"seed":-Infinity}', "invalid_number"),
        (b'{"seed":' + b"9" * 5000 + b"}", "invalid_number"),
        (b'{"seed":' + b"9" * 101 + b"}", "invalid_number"),
        (b'{"model":"a","model":"b"}', "duplicate_key"),
        (b'{"messages":[{"role":"user","role":"system"}]}', "duplicate_key"),
        (b'{"\\ud800":1,"\\ud800":2}', "duplicate_key"),
        (b'{"\\u0000\\n":1,"\\u0000\\n":2}', "duplicate_key"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, code: str) -> None:
    assert refused(body).code == code


def test_the_place_of_the_fault_is_named() -> None:
    assert "line 2 column 9" in refused(b'{\n    "a" "b"}').message


def test_half_a_million_fields_are_checked_in_no_time() -> None:
    """Looking for the field that appears twice must not take the square of their number."""
    fields = ",".join(f'"{number}":0' for number in range(300_000))
    started = time.process_time()
    assert refused(f'{{{fields},"299999":0}}'.encode()).code == "duplicate_key"
    assert time.process_time() - started < 5


# ---------------------------------------------------------------- fields

BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": ...}, "missing_field", "model"),
    ({"model": ""}, "invalid_value", "model"),
    ({"model": "x" * 301}, "invalid_value", "model"),
    ({"model": 7}, "invalid_value", "model"),
    ({"messages": ...}, "missing_field", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "Hi"}, "invalid_value", "messages"),
    ({"messages": [USER] * (MAX_MESSAGES + 1)}, "invalid_value", "messages"),
    ({"messages": [USER, "Hi"]}, "invalid_value", "messages[1]"),
    ({"messages": [USER, {"content": "x"}]}, "missing_field", "messages[1].role"),
    ({"messages": [{"role": "root", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", "messages[0].content"),
    ({"stream": "yes"}, "invalid_value", "stream"),
    ({"stream": 1}, "invalid_value", "stream"),
    ({"stream_options": True}, "invalid_value", "stream_options"),
    ({"stream_options": {"include_usage": "x"}}, "invalid_value", "stream_options.include_usage"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": 1e308}, "invalid_value", "temperature"),
    ({"temperature": True}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": 1.1}, "invalid_value", "top_p"),
    ({"top_k": -1}, "invalid_value", "top_k"),
    ({"top_k": 1.5}, "invalid_value", "top_k"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"seed": 1.5}, "invalid_value", "seed"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens"),
    ({"max_tokens": "10"}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 2**40}, "invalid_value", "max_completion_tokens"),
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": 7}, "invalid_value", "stop"),
    ({"stop": ["a", ""]}, "invalid_value", "stop"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"stop": ["x" * 257]}, "invalid_value", "stop"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": -1}, "invalid_value", "n"),
    ({"n": 5}, "invalid_value", "n"),
    ({"n": 2**31}, "invalid_value", "n"),
    ({"best_of": 10**6}, "unsupported_parameter", "best_of"),
    ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
    ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
    ({"frequency_penalty": -3}, "invalid_value", "frequency_penalty"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"logprobs": 1}, "invalid_value", "logprobs"),
    ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
    ({"min_p": 1.5}, "invalid_value", "min_p"),
    ({"prompt_logprobs": -1}, "unsupported_parameter", "prompt_logprobs"),
    ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias.1"),
    ({"logit_bias": {"one": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "invalid_value", "logit_bias"),
    ({"response_format": {"type": "json_schema", "json_schema": {"pattern": "(a+)+b"}}}, "unsupported_parameter",
     "response_format"),
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
    ({"functions": [1]}, "unsupported_parameter", "functions"),
    ({"audio": {}}, "unsupported_parameter", "audio"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "param"), BAD_FIELDS)
def test_a_bad_field_is_refused_by_its_path(fields: dict[str, Any], code: str, param: str) -> None:
    data = {name: value for name, value in (GOOD | fields).items() if value is not ...}
    error = refused(json.dumps(data).encode())
    assert (error.status, error.code, error.param) == (400, code, param)
    assert param in error.message


def test_a_number_out_of_floats_range_is_refused() -> None:
    assert (
        refused(b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}').param == "temperature"
    )


@pytest.mark.parametrize("name", NEUTRAL_VALUES)
def test_an_unsupported_field_may_say_that_it_wants_nothing(name: str) -> None:
    for value in NEUTRAL_VALUES[name]:
        parse(**{name: value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*ChatRequest.model_fields, *NEUTRAL_VALUES, "other"]), json_values)
def test_a_field_of_any_value_is_taken_or_refused_in_one_sentence(name: str, value: object) -> None:
    body = json.dumps(GOOD | {name: value}).encode()
    try:
        parse_chat_request(body)
    except InvalidRequest as error:
        assert error.status == 400
        assert error.message.isprintable()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body: bytes) -> None:
    refused(body)
