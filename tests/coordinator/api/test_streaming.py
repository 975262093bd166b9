"""OpenAI's formats: whole and as server-sent events; and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.api import unread as unread_module
from coordinator.api.streaming import DONE, KEEP_ALIVE, KEEP_ALIVE_S, event
from coordinator.core import LEASE_S
from protocol.values import KV_BLOCK_TOKENS
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CHAT, TEXT, ApiDriver, events_of, question, running_api, says, speaker, text_of
from tests.fakes.asgi_client import JSON
from tests.fakes.fake_node import FakeNode
from tests.fakes.virtual_loop import on_virtual_time

LONG_TALK = [{"role": "user", "content": "Hello, are you there? " * 9}]
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 14,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def body(**fields: object) -> list[bytes]:
    return [json.dumps(question(**fields)).encode()]


@pytest.mark.parametrize(
    "text", ["data: x\n\ndata: [DONE]\n\n", "\r\n\r\nevent: error\n\n", "\u2028\u0085\x00", "字😀"]
)
def test_no_text_of_a_model_can_break_an_event(text: str) -> None:
    assert events_of(event({"text": text})) == [{"text": text}]


@on_virtual_time
async def test_a_stream_is_openais_chunks_and_done() -> None:
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, question(stream=True))
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-accel-buffering"] == "no"
        events = events_of(reply.body)
        assert events[-1] == "[DONE]"
        assert text_of(events) == TEXT
        chunks = events[:-1]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert {chunk["model"] for chunk in chunks} == {"tiny"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert chunks[0]["decentllm"]["nodes"] == [{"name": "node 1", "layers": "0-7"}]
        assert set(chunks[-1]["decentllm"]["timing"]) == {"compute_us", "codec_us"}
        assert not any("usage" in chunk for chunk in chunks)


@on_virtual_time
async def test_usage_comes_last_when_asked_for() -> None:
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, question(stream=True, stream_options={"include_usage": True}))
        last = events_of(reply.body)[-2]
        assert last["choices"] == []
        assert last["usage"] == USAGE


@on_virtual_time
async def test_what_of_the_prompt_was_cached_is_told_as_openai_does() -> None:
    async with running_api(speaker(caches=True)) as api:
        asked = question(stream=True, stream_options={"include_usage": True}, messages=LONG_TALK)
        cached = [
            events_of((await api.client.post(CHAT, asked)).body)[-2]["usage"]["prompt_tokens_details"] for _ in range(2)
        ]
        whole = (await api.client.post(CHAT, question(messages=LONG_TALK))).json()
        assert cached[0] == {"cached_tokens": 0}
        assert cached[1] == whole["usage"]["prompt_tokens_details"]
        assert 0 < cached[1]["cached_tokens"] < whole["usage"]["prompt_tokens"]
        assert cached[1]["cached_tokens"] % KV_BLOCK_TOKENS == 0


@on_virtual_time
async def test_a_whole_answer_has_the_same_text() -> None:
    async with running_api(speaker()) as api:
        answer = (await api.client.post(CHAT, question())).json()
        assert answer["object"] == "chat.completion"
        [choice] = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
        assert choice["finish_reason"] == "stop"
        assert answer["usage"] == USAGE
        assert answer["decentllm"]["nodes"] == [{"name": "node 1", "layers": "0-7"}]


@pytest.mark.parametrize("text", ["a\n\nb\n\ndata: [DONE]\n\n", '"quoted" \\ {"x":1}', "Grüße, 世界 😀\u2028", "x"])
@pytest.mark.parametrize("stream", [True, False])
@on_virtual_time
async def test_any_text_arrives_as_it_was(text: str, stream: bool) -> None:
    async with running_api(speaker(text=text)) as api:
        reply = await api.client.post(CHAT, question(stream=stream))
        shown = text_of(events_of(reply.body)) if stream else reply.json()["choices"][0]["message"]["content"]
        assert shown == text


# ---------------------------------------------------------------- silence


@on_virtual_time
async def test_a_short_silence_brings_no_comment() -> None:
    """Shorter than the lease too: the node is still there afterwards."""
    node = speaker()
    async with running_api(node) as api, api.client.exchange("POST", CHAT, body(stream=True), JSON) as exchange:
        await exchange.started()
        api.pool.world.network.hold("node 1")
        await asyncio.sleep(LEASE_S * 0.6)
        before = exchange.reply.body
        api.pool.world.network.release("node 1")
        reply = await exchange.finished()
        assert KEEP_ALIVE not in before
        assert reply.body.endswith(DONE)


@on_virtual_time
async def test_every_quarter_minute_of_silence_brings_one_comment() -> None:
    node = speaker()
    async with running_api(node) as api:
        node.hangs = True
        async with api.client.exchange("POST", CHAT, body(stream=True), JSON) as exchange:
            await exchange.started()
            await asyncio.sleep(KEEP_ALIVE_S * 3 + 1)
            assert exchange.reply.body.count(KEEP_ALIVE) == 3
        node.hangs = False
        await api.still_works()


# ---------------------------------------------------------------- clients that leave


async def leave_after(api: ApiDriver, num_chunks: int, stream: bool) -> None:
    async with api.client.exchange("POST", CHAT, body(stream=stream, max_tokens=900), JSON) as exchange:
        if stream:
            chunks = exchange.chunks()
            for _ in range(num_chunks):
                await anext(chunks)
        else:
            await asyncio.sleep(0.05 * num_chunks)
        assert api.num_open_sessions()
        await exchange.disconnect()
        assert exchange._task.exception() is None


@pytest.mark.parametrize("num_chunks", [1, 2, 7])
@pytest.mark.parametrize("stream", [True, False])
@on_virtual_time
async def test_a_client_that_leaves_ends_the_generation_on_the_nodes(num_chunks: int, stream: bool) -> None:
    nodes = [speaker(number, "word " * 500, max_layers=4) for number in (1, 2)]
    async with running_api(*nodes) as api:
        await leave_after(api, num_chunks, stream)
        await api.pool.until(lambda: api.num_open_sessions() == 0)
        for node in nodes:
            node.rule = says(TEXT)
        await api.still_works()


@pytest.mark.parametrize("stream", [True, False])
@on_virtual_time
async def test_a_client_that_leaves_while_nothing_comes_is_noticed(stream: bool) -> None:
    """Leaving while the next token is awaited: what a press on the stop button does."""
    node = speaker(text="word " * 500)
    async with running_api(node) as api:
        async with api.client.exchange("POST", CHAT, body(stream=stream), JSON) as exchange:
            await asyncio.sleep(0.2)
            node._receive = lambda frame: []  # type: ignore[method-assign,assignment]
            await asyncio.sleep(5)
            await exchange.disconnect()
            assert exchange._task.exception() is None
        await api.pool.until(lambda: not api.pool.hub.core.sessions)


@pytest.mark.parametrize("stream", [True, False])
@on_virtual_time
async def test_a_client_that_leaves_before_its_request_has_a_chain_is_noticed(stream: bool) -> None:
    async with running_api(speaker()) as api:
        blocker = asyncio.ensure_future(api.client.post(CHAT, question(max_tokens=900)))
        await api.pool.until(lambda: api.pool.hub.core.scheduler.state.running)
        for device in api.pool.hub.core.scheduler.state.devices.values():
            device.num_kv_tokens = 1000
        async with api.client.exchange("POST", CHAT, body(stream=stream), JSON) as exchange:
            await asyncio.sleep(0)
            await exchange.disconnect()
            assert exchange._task.exception() is None
        await blocker
        await api.pool.until(lambda: api.num_open_sessions() == 0)


@pytest.mark.expected_logs("broke off: not_read")
@on_virtual_time
async def test_a_client_that_stops_reading_is_cut_and_nothing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unread_module, "MAX_UNREAD_BYTES", 2000)
    node = speaker(text="word " * 500)
    async with running_api(node) as api:
        async with api.client.exchange("POST", CHAT, body(stream=True, max_tokens=900), JSON) as exchange:
            chunks = exchange.chunks()
            for _ in range(5):
                await anext(chunks)
            exchange.reads.clear()
            await asyncio.sleep(unread_module.NOT_READ_S - 5)
            assert api.pool.hub.answers.answers
            await asyncio.sleep(10)
            assert not api.pool.hub.answers.answers
            assert api.num_open_sessions() == 0
            exchange.reads.set()
            reply = await exchange.finished()
        assert events_of(reply.body)[-1]["error"]["code"] == "not_read"
        node.rule = says(TEXT)
        await api.still_works()


@on_virtual_time
async def test_a_client_that_reads_in_bursts_has_its_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_module, "MAX_UNREAD_BYTES", 500)
    async with running_api(speaker(text="word " * 60)) as api:
        async with api.client.exchange("POST", CHAT, body(stream=True, max_tokens=900), JSON) as exchange:
            exchange.delay_s = unread_module.NOT_READ_S / 20
            reply = await exchange.finished()
        assert text_of(events_of(reply.body)) == "word " * 60


# ---------------------------------------------------------------- errors in mid-stream


@pytest.mark.expected_logs("broke off: no_capacity")
@on_virtual_time
async def test_an_error_in_the_middle_of_a_stream_becomes_an_event() -> None:
    async with running_api(speaker(text="word " * 500)) as api:
        async with api.client.exchange("POST", CHAT, body(stream=True), JSON) as exchange:
            chunks = exchange.chunks()
            for _ in range(5):
                await anext(chunks)
            api.pool.world.network.cut("node 1")
            reply = await exchange.finished()
        *_, last = events_of(reply.body)
        assert last["error"]["code"] == "no_capacity"
        assert last["error"]["type"] == "server_error"
        assert last["error"]["message"]
        assert DONE not in reply.body


@on_virtual_time
async def test_an_error_in_the_middle_of_a_whole_answer_is_its_status() -> None:
    async with running_api(speaker(text="word " * 500)) as api:
        asking = asyncio.ensure_future(api.client.post(CHAT, question()))
        await asyncio.sleep(0.5)
        api.pool.world.network.cut("node 1")
        reply = await asking
        assert reply.error == (503, "no_capacity", None)


@on_virtual_time
async def test_a_stream_survives_a_nodes_death_and_tells_the_new_chain() -> None:
    async with running_api(*(speaker(n, "word " * 100, max_layers=4) for n in range(1, 5))) as api:
        async with api.client.exchange("POST", CHAT, body(stream=True, max_tokens=300), JSON) as exchange:
            chunks = exchange.chunks()
            first = events_of(await anext(chunks))[0]["decentllm"]["nodes"]
            for _ in range(10):
                await anext(chunks)
            api.pool.world.network.cut(first[1]["name"])
            reply = await exchange.finished()
        events: Sequence[dict[str, object]] = [e for e in events_of(reply.body) if e != "[DONE]"]
        assert text_of(events) == ("word " * 100)[:300]
        assert len([e for e in events if "nodes" in e.get("decentllm", {})]) == 2  # type: ignore[operator]


# ---------------------------------------------------------------- waiting for a place


def busy(num_kv_tokens: int = 1000) -> FakeNode:
    """A node with room for one long answer."""
    return FakeNode(1, facts.spec(8), rule=says("word " * 60), num_kv_tokens=num_kv_tokens)


def places(events: Sequence[Any]) -> list[int]:
    extras = [event.get("decentllm", {}) for event in events if event != "[DONE]"]
    return [extra["queue"]["place"] for extra in extras if "queue" in extra]


@on_virtual_time
async def test_who_waits_is_told_the_place_and_then_answered() -> None:
    async with running_api(busy()) as api:
        asked = {"stream": True, "max_tokens": 900}
        tasks = [asyncio.ensure_future(api.client.post(CHAT, question(**asked))) for _ in range(3)]
        replies = [await task for task in tasks]
        streams = [events_of(reply.body) for reply in replies]
        assert [reply.status for reply in replies] == [200] * 3
        assert {text_of(stream) for stream in streams} == {"word " * 60}
        first, second, third = (places(stream) for stream in streams)
        assert first == []
        assert second == [1]
        assert third == [2, 1]
        waiting = streams[2][0]
        assert waiting["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert waiting["choices"][0]["finish_reason"] is None
        assert set(waiting["decentllm"]["queue"]) == {"place", "num_waiting", "expected_wait_s"}
        assert streams[2][1]["choices"][0]["delta"] == {}
        assert {event["id"] for event in streams[2][:-1]} == {waiting["id"]}


@on_virtual_time
async def test_a_whole_answer_says_nothing_of_the_wait() -> None:
    async with running_api(busy()) as api:
        tasks = [asyncio.ensure_future(api.client.post(CHAT, question(max_tokens=900))) for _ in range(2)]
        first, second = [(await task).json() for task in tasks]
        assert first["choices"][0]["message"] == second["choices"][0]["message"]
        assert first["usage"] == second["usage"]
        assert set(second["decentllm"]) == {"nodes", "timing"}


@on_virtual_time
async def test_who_leaves_the_queue_makes_place() -> None:
    async with running_api(busy()) as api:
        running = asyncio.ensure_future(api.client.post(CHAT, question(max_tokens=900)))
        await api.pool.until(lambda: api.pool.hub.core.scheduler.state.running)
        async with api.client.exchange("POST", CHAT, body(stream=True, max_tokens=900), JSON) as exchange:
            await exchange.started()
            assert places(events_of(exchange.reply.body)) in ([], [1])
            assert api.pool.hub.core.scheduler.state.waiting
            await exchange.disconnect()
            assert exchange._task.exception() is None
        await api.pool.until(lambda: not api.pool.hub.core.scheduler.state.waiting)
        await running
        await api.pool.until(lambda: api.num_open_sessions() == 0)


@on_virtual_time
async def test_who_waited_in_vain_is_told_so_in_the_stream() -> None:
    """No warning in the log: nothing broke."""
    node = busy()
    async with running_api(node) as api:
        node._receive = lambda frame: []  # type: ignore[method-assign,assignment]
        async with api.client.exchange("POST", CHAT, body(stream=True, max_tokens=900), JSON) as blocker:
            await blocker.started()
            reply = await api.client.post(CHAT, question(stream=True, max_tokens=900))
        assert reply.status == 200
        first, *_, last = events_of(reply.body)
        assert first["decentllm"]["queue"]["place"] == 1
        assert last["error"]["code"] == "no_capacity"
        assert DONE not in reply.body
