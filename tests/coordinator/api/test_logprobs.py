"""Log-probabilities as OpenAI writes them, streamed or whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.api_driver import CHAT, TEXT, events_of, question, running_api, speaker
from tests.fakes.virtual_loop import on_virtual_time


def contents(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]


async def entries(stream: bool, **fields: object) -> list[dict[str, Any]]:
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, question(stream=stream, **fields))
        assert reply.status == 200, reply.body
        answers = events_of(reply.body)[:-1] if stream else [reply.json()]
        return contents([choice for answer in answers for choice in answer["choices"]])


@pytest.mark.parametrize("stream", [False, True])
@on_virtual_time
async def test_each_token_of_the_text_has_one(stream: bool) -> None:
    found = await entries(stream, logprobs=True, top_logprobs=2)
    assert "".join(entry["token"] for entry in found) == TEXT
    assert b"".join(bytes(entry["bytes"]) for entry in found) == TEXT.encode()
    assert found[0] == {
        "token": "H",
        "logprob": -0.5,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.5, "bytes": [72]},
            {"token": "I", "logprob": -1.5, "bytes": [73]},
        ],
    }


@pytest.mark.parametrize("stream", [False, True])
@on_virtual_time
async def test_without_top_logprobs_it_is_the_token_alone(stream: bool) -> None:
    found = await entries(stream, logprobs=True)
    assert [entry["top_logprobs"] for entry in found] == [[]] * len(TEXT)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}])
@on_virtual_time
async def test_nobody_else_has_them(stream: bool, fields: dict[str, Any]) -> None:
    assert await entries(stream, **fields) == []


@on_virtual_time
async def test_a_token_whose_text_is_held_back_for_a_stop_string_comes_with_its_own() -> None:
    found = await entries(True, logprobs=True, stop="orb")
    assert "".join(entry["token"] for entry in found) == TEXT
