"""The official OpenAI client works unchanged."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from tests.integration.conftest import Served

QUESTION = "Write a Python function that reverses a string."


@pytest.fixture
def client(real_pool: Served) -> OpenAI:
    return OpenAI(base_url=f"{real_pool.pool.url}/v1", api_key="none needed", max_retries=0, timeout=300)


def ask(client: OpenAI, model: str, **options: object) -> object:
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=48, **options)  # type: ignore[call-overload]


def test_a_whole_answer_is_sensible(client: OpenAI, real_pool: Served) -> None:
    answer = ask(client, real_pool.model)
    assert "def " in answer.choices[0].message.content
    assert answer.usage.completion_tokens == 48
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_answer_is_the_same_as_the_whole_one(client: OpenAI, real_pool: Served) -> None:
    chunks = list(ask(client, real_pool.model, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ask(client, real_pool.model).choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 48
    assert len(chunks) > 20, "an answer must come piece by piece"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(client: OpenAI, real_pool: Served) -> None:
    def sampled(seed: int) -> str:
        messages = [{"role": "user", "content": "Name an animal and say something surprising about it."}]
        answer = client.chat.completions.create(
            model=real_pool.model, messages=messages, temperature=1.2, top_p=0.95, seed=seed, max_tokens=16
        )
        return str(answer.choices[0].message.content)

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in (7, 8, 9)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_text(stream: bool, client: OpenAI, real_pool: Served) -> None:
    answer = ask(client, real_pool.model, logprobs=True, top_logprobs=3, stream=stream)
    choices = [choice for part in answer for choice in part.choices] if stream else answer.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    said = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == said
    for entry in entries:
        assert entry.top_logprobs[0].token == entry.token, "greedy"
        assert 0 >= entry.logprob == entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob


def test_a_banned_token_is_not_said_and_a_wanted_one_is(client: OpenAI, real_pool: Served) -> None:
    first = ask(client, real_pool.model, logprobs=True, top_logprobs=2).choices[0].logprobs.content[0]
    ids = real_pool.complete(QUESTION, max_tokens=1, return_token_ids=True)["choices"][0]["token_ids"]
    banned = ask(client, real_pool.model, logit_bias={str(ids[0]): -100}, logprobs=True).choices[0].logprobs.content[0]
    assert banned.token == first.top_logprobs[1].token
    forced = ask(client, real_pool.model, logit_bias={str(ids[0]): 100}).choices[0].message.content
    assert forced == first.token * 48


def test_models_are_listed(client: OpenAI, real_pool: Served) -> None:
    assert [model.id for model in client.models.list()] == [real_pool.model]
    assert client.models.retrieve(real_pool.model).id == real_pool.model


def test_an_unknown_model_is_the_clients_not_found_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-4'"):
        ask(client, "gpt-4")


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI, real_pool: Served) -> None:
    whole = ask(client, real_pool.model).choices[0].message.content
    stopped = ask(client, real_pool.model, stop=["def "])
    assert stopped.choices[0].message.content == whole[: whole.index("def ")]
    assert stopped.choices[0].finish_reason == "stop"
