"""From a request to an order in tokens, and from tokens back to text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.api.asker import Asker
from coordinator.api.chat import DEFAULT_MAX_TOKENS, Answer, ChatService, Chunk
from coordinator.api.errors import ApiError
from coordinator.api.schemas import ChatRequest
from protocol.values import FinishReason, Sampling
from tests.fakes.api_driver import NAME, STOP, TEXT, ApiDriver, question, running_api, served_model, speaker
from tests.fakes.virtual_loop import on_virtual_time


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate(question(**fields))


async def start(api: ApiDriver, **fields: Any) -> Answer:
    service = ChatService(api.pool.hub, api.pool.world.env("coordinator"), {NAME: served_model()})
    return await service.start(asked(**fields))


async def chunks_of(answer: Answer) -> list[Chunk]:
    return [chunk async for chunk in answer.chunks()]


@on_virtual_time
async def test_an_order_has_what_was_asked_for() -> None:
    async with running_api(speaker()) as api:
        order = (await start(api, temperature=0, top_p=0.5, top_k=3, seed=11, max_tokens=9)).order
        sampling = order.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 3, 11)
        assert (order.max_new_tokens, order.stop_tokens) == (9, (STOP,))
        assert order.prompt == (*map(ord, "user:Hi\n"), 1)


@on_virtual_time
async def test_an_order_has_all_that_shapes_its_tokens() -> None:
    fields = {"min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2}
    async with running_api(speaker()) as api:
        biases = {"12": -100, "3": 1.5}
        order = (await start(api, **fields, logit_bias=biases, logprobs=True, top_logprobs=3, seed=1)).order
        assert order.sampling == Sampling(
            0.7, seed=1, **fields, logit_bias=((3, 1.5), (12, -100)), num_logprobs=3, answer_from=len(order.prompt)
        )


@on_virtual_time
async def test_a_bias_on_a_token_that_the_model_does_not_have_is_refused() -> None:
    async with running_api(speaker()) as api:
        with pytest.raises(ApiError, match="tiny does not have; the last one is 999") as caught:
            await start(api, logit_bias={"1000": 1})
        assert (caught.value.status, caught.value.param) == (400, "logit_bias")


@pytest.mark.parametrize(
    ("fields", "penalty"), [({}, 1.3), ({"temperature": 0}, 1.0), ({"repetition_penalty": 1}, 1.0)]
)
@on_virtual_time
async def test_the_makers_penalty_holds_unless_the_likeliest_tokens_are_asked_for(
    fields: dict[str, Any], penalty: float
) -> None:
    async with running_api(speaker()) as api:
        model = replace(served_model(), default_sampling=Sampling(0.7, repetition_penalty=1.3))
        service = ChatService(api.pool.hub, api.pool.world.env("coordinator"), {NAME: model})
        assert (await service.start(asked(**fields))).order.sampling.repetition_penalty == penalty


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-5])
@on_virtual_time
async def test_a_temperature_that_would_overflow_the_logits_is_greedy(temperature: float) -> None:
    async with running_api() as api:
        assert (await start(api, temperature=temperature)).order.sampling.temperature == 0


@on_virtual_time
async def test_what_was_not_asked_for_is_the_models_own() -> None:
    async with running_api(speaker()) as api:
        one, two = await start(api), await start(api)
        assert (one.order.sampling.temperature, one.order.sampling.top_p) == (0.7, 1.0)
        assert one.order.sampling.seed != two.order.sampling.seed
        assert one.order.session_id != two.order.session_id


@pytest.mark.parametrize(("wanted", "given"), [(None, 991), (50, 50), (5000, 991)])
@on_virtual_time
async def test_the_answer_is_cut_to_the_context(wanted: int | None, given: int) -> None:
    """The prompt has 9 of 1,000 tokens."""
    assert DEFAULT_MAX_TOKENS > 1000
    async with running_api(speaker()) as api:
        assert (await start(api, max_tokens=wanted)).order.max_new_tokens == given


@on_virtual_time
async def test_the_answer_is_cut_to_the_kv_room_of_the_pool() -> None:
    node = speaker()
    node.num_kv_tokens = 100
    async with running_api(node) as api:
        assert (await start(api)).order.num_tokens == 100


@pytest.mark.parametrize(("length", "is_taken"), [(999, True), (1000, False), (5000, False)])
@on_virtual_time
async def test_a_prompt_must_leave_room_for_an_answer(length: int, is_taken: bool) -> None:
    """As many characters as make so many tokens with the role, the line's end and the answer's mark."""
    async with running_api(speaker()) as api:
        messages = [{"role": "user", "content": "x" * (length - len("user:\n") - 1)}]
        if is_taken:
            assert (await start(api, messages=messages)).order.max_new_tokens >= 1
        else:
            with pytest.raises(ApiError, match=f"has {length} tokens") as caught:
                await start(api, messages=messages)
            assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


@on_virtual_time
async def test_an_unknown_model_is_named_beside_the_known_ones() -> None:
    async with running_api(speaker()) as api:
        with pytest.raises(ApiError) as caught:
            await start(api, model="../../etc/passwd\x1b[0m" + "y" * 200)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        assert NAME in caught.value.message
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 150


@on_virtual_time
async def test_an_answer_comes_in_chunks_that_make_up_its_text() -> None:
    async with running_api(speaker(1, max_layers=4), speaker(2, max_layers=4)) as api:
        answer = await start(api)
        chunks = await chunks_of(answer)
        assert sorted(stage.name for stage in chunks[0].nodes or ()) == ["node 1", "node 2"]
        assert [stage.layers for stage in chunks[0].nodes or ()] == ["0-3", "4-7"]
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [FinishReason.STOP]
        assert (answer.totals.num_prompt_tokens, answer.totals.num_tokens) == (9, len(TEXT) + 1)
        assert answer.totals.compute_us > 0


@on_virtual_time
async def test_a_stop_string_ends_the_answer_and_the_generation() -> None:
    async with running_api(speaker(text="one two three " * 50)) as api:
        chunks = await chunks_of(await start(api, stop=["two", "x"]))
        assert "".join(chunk.text for chunk in chunks) == "one "
        assert chunks[-1].finish_reason is FinishReason.STOP
        await api.pool.until(lambda: api.num_open_sessions() == 0)


@on_virtual_time
async def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    async with running_api(speaker(text="Hello th")) as api:
        chunks = await chunks_of(await start(api, stop="the end"))
        assert "".join(chunk.text for chunk in chunks) == "Hello th"


@on_virtual_time
async def test_the_token_limit_is_the_reason_when_it_is() -> None:
    async with running_api(speaker()) as api:
        chunks = await chunks_of(await start(api, max_tokens=5))
        assert "".join(chunk.text for chunk in chunks) == TEXT[:5]
        assert chunks[-1].finish_reason is FinishReason.LENGTH


@on_virtual_time
async def test_an_order_says_who_asks_and_how_long_it_would_wait() -> None:
    async with running_api(speaker()) as api:
        service = ChatService(api.pool.hub, api.services.env, api.services.desk.models)
        order = (await service.start(asked(), Asker("key 7", 2.5))).order
        assert (order.tenant, order.deadline_s) == ("key 7", 2.5)
        nobody = (await service.start(asked())).order
        assert (nobody.tenant, nobody.deadline_s) == ("", None)
