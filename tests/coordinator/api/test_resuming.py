"""Clients that lose the connection in the middle of an answer and come back for the rest of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.answer_times import AnswerTimes
from coordinator.api.resuming import Format
from coordinator.journal import JOURNAL_NAME, Journal
from protocol.messages import OpenSession
from tests.fakes.api_driver import (
    CHAT,
    CLOSED_SITE,
    TEXT,
    ApiDriver,
    events_of,
    ids_of,
    question,
    running_api,
    speaker,
    text_of,
)
from tests.fakes.asgi_client import JSON, AsgiClient, Reply
from tests.fakes.virtual_loop import on_virtual_time, run_virtual

STORY = "Once upon a time, dæmons 😀 wrote: STOP here. Then more"


def streamed(**fields: Any) -> dict[str, Any]:
    options = {"include_usage": True, "resumable": True}
    return question(stream=True, **{"stream_options": options, "max_tokens": 900, **fields})


def last_id(body: bytes) -> str:
    return [name for name in ids_of(body) if name][-1]


async def come_back(
    client: AsgiClient, event_id: str, path: str = "", headers: Mapping[str, str] | None = None
) -> Reply:
    answer_id = event_id.partition(":")[0]
    return await client.get(f"{CHAT}/{path or answer_id}/events", {"last-event-id": event_id, **(headers or {})})


async def broken_off(api: ApiDriver, num_chunks: int, **fields: Any) -> bytes:
    """What a client has seen when its connection breaks after so many events."""
    body = [json.dumps(streamed(**fields)).encode()]
    async with api.client.exchange("POST", CHAT, body, JSON) as exchange:
        chunks = exchange.chunks()
        seen = b"".join([await anext(chunks) for _ in range(num_chunks)])
        await exchange.disconnect()
    return seen


def finish_of(events: list[Any]) -> list[str]:
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


@pytest.mark.parametrize("stop", [None, "STOP", ["P here", "time, dæmons 😀 w"]])
def test_what_comes_back_behind_any_event_is_exactly_the_rest(stop: Any) -> None:
    async def main() -> None:
        async with running_api(speaker(1, STORY)) as api:
            fields = {} if stop is None else {"stop": stop}
            whole = (await api.client.post(CHAT, streamed(**fields))).body
            blocks = whole.split(b"\n\n")
            names = [name for name in ids_of(whole) if name]
            assert [int(name.partition(":")[2]) for name in names] == sorted({int(n.partition(":")[2]) for n in names})
            for number, name in enumerate(names, start=1):
                rest = await come_back(api.client, name)
                assert rest.status == 200
                assert rest.headers["content-type"].startswith("text/event-stream")
                assert text_of(events_of(b"\n\n".join(blocks[:number]) + b"\n\n")) + text_of(
                    events_of(rest.body)
                ) == text_of(events_of(whole))
                events = events_of(rest.body)
                assert finish_of(events) == finish_of(events_of(whole))
                assert {(e["id"], e["created"], e["model"]) for e in events[:-1]} == {
                    (e["id"], e["created"], e["model"]) for e in events_of(whole)[:-1]
                }
                assert events[-2:] == events_of(whole)[-2:], "usage and [DONE]"

    run_virtual(main())


@pytest.mark.parametrize("num_chunks", range(1, 12))
def test_an_answer_goes_on_while_its_reader_is_away_and_behind_what_was_seen(num_chunks: int) -> None:
    async def main() -> None:
        async with running_api(speaker(1, STORY)) as api:
            seen = await broken_off(api, num_chunks)
            await asyncio.sleep(0.05 * num_chunks)
            rest = await come_back(api.client, last_id(seen))
            assert text_of(events_of(seen)) + text_of(events_of(rest.body)) == STORY
            assert rest.body.endswith(b"data: [DONE]\n\n")

    run_virtual(main())


@pytest.mark.parametrize("num_chunks", [*range(2, 12), 30])
@pytest.mark.parametrize("stop", [None, "STOP"])
def test_another_coordinator_goes_on_writing_the_same_answer(stop: str | None, num_chunks: int, tmp_path: Path) -> None:
    """The first one is gone; what the client sees of the second has the same id and the same time."""
    fields = {"return_token_ids": True} | ({} if stop is None else {"stop": stop})

    async def first() -> bytes:
        journal = Journal.open(tmp_path / JOURNAL_NAME)
        async with running_api(speaker(1, STORY), journal=journal) as api:
            seen = await broken_off(api, num_chunks, **fields)
        journal.close()
        return seen

    async def second(seen: bytes) -> tuple[bytes, bytes]:
        journal = Journal.open(tmp_path / JOURNAL_NAME)
        async with running_api(speaker(1, STORY), journal=journal) as api:
            rest = await come_back(api.client, last_id(seen))
            whole = await api.client.post(CHAT, streamed(**fields))
        journal.close()
        return rest.body, whole.body

    seen = run_virtual(first())
    rest, whole = run_virtual(second(seen))
    assert text_of(events_of(seen)) + text_of(events_of(rest)) == text_of(events_of(whole))
    assert tokens_of(seen) + tokens_of(rest) == tokens_of(whole)
    heads = {(e["id"], e["created"]) for e in [*events_of(seen), *events_of(rest)] if e != "[DONE]"}
    assert len(heads) == 1
    assert events_of(rest)[-2]["usage"] == events_of(whole)[-2]["usage"]


def tokens_of(body: bytes) -> list[int]:
    choices = [choice for event in events_of(body) if event != "[DONE]" for choice in event["choices"]]
    return [token for choice in choices for token in choice.get("token_ids", ())]


@on_virtual_time
async def test_a_client_that_has_seen_nothing_gets_all() -> None:
    async with running_api(speaker(1, STORY)) as api:
        whole = (await api.client.post(CHAT, streamed())).body
        answer_id = events_of(whole)[0]["id"]
        again = await api.client.get(f"{CHAT}/{answer_id}/events")
        assert text_of(events_of(again.body)) == STORY
        assert events_of(again.body)[0]["choices"][0]["delta"]["role"] == "assistant"


# ---------------------------------------------------------------- how long one waits for whom


@on_virtual_time
async def test_who_does_not_come_back_in_time_has_left() -> None:
    node = speaker(1, "word " * 190)
    node._receive = lambda frame: []  # type: ignore[method-assign,assignment]
    async with running_api(node) as api:
        seen = await broken_off(api, 1)
        await asyncio.sleep(AnswerTimes().grace_s - 1)
        assert api.num_open_sessions()
        await asyncio.sleep(2)
        assert not api.num_open_sessions()
        assert (await come_back(api.client, last_id(seen))).error == (404, "answer_not_found", None)


@on_virtual_time
async def test_a_client_that_knows_nothing_of_coming_back_ends_its_answer_by_leaving() -> None:
    async with running_api(speaker(1, "word " * 190)) as api:
        seen = await broken_off(api, 3, stream_options={"include_usage": True})
        await api.pool.until(lambda: not api.num_open_sessions())
        assert (await come_back(api.client, last_id(seen))).status == 404


@on_virtual_time
async def test_a_complete_answer_is_there_for_a_while() -> None:
    async with running_api(speaker(1, STORY)) as api:
        name = last_id((await api.client.post(CHAT, streamed())).body)
        await asyncio.sleep(AnswerTimes().retention_s - 5)
        assert (await come_back(api.client, name)).status == 200
        await asyncio.sleep(AnswerTimes().retention_s + 1)
        assert (await come_back(api.client, name)).status == 404


@pytest.mark.expected_logs("broke off: model_unloaded")
@on_virtual_time
async def test_an_answer_that_failed_says_so_to_who_comes_back() -> None:
    async with running_api(speaker(1, "word " * 190)) as api:
        seen = await broken_off(api, 3)
        api.pool.hub.remove_model(api.services.desk.models["tiny"].manifest_hash)
        await asyncio.sleep(1)
        rest = await come_back(api.client, last_id(seen))
        assert events_of(rest.body)[-1]["error"]["code"] == "model_unloaded"


@on_virtual_time
async def test_who_stops_an_answer_ends_it_on_the_nodes() -> None:
    async with running_api(speaker(1, "word " * 190)) as api:
        name = last_id(await broken_off(api, 3))
        assert api.num_open_sessions()
        path = f"{CHAT}/{name.partition(':')[0]}"
        assert (await api.client.request("DELETE", path)).status == 204
        await api.pool.until(lambda: not api.num_open_sessions())
        assert (await api.client.request("DELETE", path)).status == 404


# ---------------------------------------------------------------- who may


@pytest.mark.parametrize(
    "name", ["", "nonsense", "chatcmpl-x:1", "{id}:-1", "{id}", "{id}:1:1", f"chatcmpl-{'0' * 32}:1"]
)
@on_virtual_time
async def test_an_event_that_is_none_of_this_answer_is_refused(name: str) -> None:
    async with running_api(speaker(1, STORY)) as api:
        answer_id = events_of((await api.client.post(CHAT, streamed())).body)[0]["id"]
        reply = await come_back(api.client, name.replace("{id}", answer_id), answer_id)
        assert reply.error == (400, "invalid_value", "Last-Event-ID")


@on_virtual_time
async def test_nobody_else_can_read_or_end_an_answer() -> None:
    async with running_api(speaker(1, "word " * 190), site=CLOSED_SITE) as api:
        keys = [api.accounts.make_key(label, None)[1] for label in ("one", "two")]
        one, two = ({"authorization": f"Bearer {key}"} for key in keys)
        body = [json.dumps(streamed()).encode()]
        async with api.client.exchange("POST", CHAT, body, JSON | one) as exchange:
            name = last_id(await anext(exchange.chunks()))
            await exchange.disconnect()
        path = f"{CHAT}/{name.partition(':')[0]}"
        assert (await come_back(api.client, name, headers=two)).error == (404, "answer_not_found", None)
        assert (await come_back(api.client, f"chatcmpl-{'0' * 32}:1", headers=two)).status == 404
        assert (await api.client.request("DELETE", path, b"", two)).status == 404
        assert (await come_back(api.client, name)).status == 401
        guest = api.browser()
        assert (await guest.sign_in(api.invitation())).status == 200
        assert (await guest.get(f"{path}/events")).status == 404
        assert api.num_open_sessions()
        rest = await come_back(api.client, name, headers=one)
        assert rest.status == 200 and rest.body.endswith(b"data: [DONE]\n\n")


@on_virtual_time
async def test_on_an_open_pool_whoever_knows_the_answer_may_come_from_another_network() -> None:
    async with running_api(speaker(1, STORY)) as api:
        seen = await broken_off(api, 3)
        elsewhere = AsgiClient(api.http, api.client.base_url, "10.9.9.9")
        rest = await come_back(elsewhere, last_id(seen))
        assert text_of(events_of(seen)) + text_of(events_of(rest.body)) == STORY


@on_virtual_time
async def test_nodes_do_not_know_what_an_answer_is_called() -> None:
    node = speaker(1, STORY)
    async with running_api(node) as api:
        answer_id = events_of((await api.client.post(CHAT, streamed())).body)[0]["id"]
        session_ids = {opened.session_id for opened in node.of_type(OpenSession)}  # type: ignore[union-attr]
        assert session_ids and not any(session_id in answer_id for session_id in session_ids)


# ---------------------------------------------------------------- a request that is sent again


def named(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


@on_virtual_time
async def test_a_request_that_is_sent_twice_at_once_is_answered_once() -> None:
    node = speaker(1, STORY)
    async with running_api(node) as api:
        asked = question(temperature=1.0)
        posts = [api.client.post(CHAT, asked, named("a")) for _ in range(3)]
        replies = [reply.json() for reply in await asyncio.gather(*posts)]
        assert {reply["id"] for reply in replies} == {replies[0]["id"]}
        assert [reply["choices"][0]["message"]["content"] for reply in replies] == [STORY] * 3
        assert node.num_tokens == len(STORY) + 1
        later = (await api.client.post(CHAT, asked, named("a"))).json()
        assert (later["id"], later["created"]) == (replies[0]["id"], replies[0]["created"])
        assert node.num_tokens == len(STORY) + 1
        assert (await api.client.post(CHAT, asked, named("b"))).json()["id"] != replies[0]["id"]
        assert (await api.client.post(CHAT, asked)).json()["id"] != replies[0]["id"]


@on_virtual_time
async def test_a_request_that_was_refused_is_taken_when_it_comes_again() -> None:
    async with running_api() as api:
        asked = streamed()
        for _ in range(2):
            assert (await api.client.post(CHAT, asked, named("a"))).error == (503, "model_not_ready", None)
        assert not api.pool.hub.answers.answers
        await api.pool.join(speaker(1, STORY))
        await api.pool.until_ready()
        assert text_of(events_of((await api.client.post(CHAT, asked, named("a"))).body)) == STORY


@on_virtual_time
async def test_another_request_under_the_same_name_is_refused() -> None:
    async with running_api(speaker(1, TEXT)) as api:
        assert (await api.client.post(CHAT, question(), named("a"))).status == 200
        for changed in (question(seed=1), question(stream=True)):
            reply = await api.client.post(CHAT, changed, named("a"))
            assert reply.error == (409, "idempotency_mismatch", "Idempotency-Key")
        await api.still_works()


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
@on_virtual_time
async def test_a_name_that_is_none_is_refused(key: str) -> None:
    async with running_api(speaker(1, TEXT)) as api:
        assert (await api.client.post(CHAT, question(), named(key))).error == (400, "invalid_value", "Idempotency-Key")


def test_a_whole_answer_is_there_when_the_request_is_sent_again_after_a_restart(tmp_path: Path) -> None:
    asked = question(max_tokens=900)

    async def life(leaves: bool) -> Any:
        journal = Journal.open(tmp_path / JOURNAL_NAME)
        try:
            async with running_api(speaker(1, STORY), journal=journal) as api:
                asking = asyncio.create_task(api.client.post(CHAT, asked, named("a")))
                if leaves:
                    await asyncio.sleep(0.2)
                    asking.cancel()
                    return None
                return (await asking).json()
        finally:
            journal.close()

    run_virtual(life(leaves=True))
    kept = Journal.open(tmp_path / JOURNAL_NAME)
    ids = [one.accepted.claim.answer_id for one in kept.take_kept()]
    kept.close()
    answer = run_virtual(life(leaves=False))
    assert [answer["id"]] == ids
    assert answer["choices"][0]["message"]["content"] == STORY


def test_a_format_comes_back_as_it_was() -> None:
    form = Format(5, "m", ("a", "b"), True, True, b"digest")
    assert msgspec.msgpack.decode(form.pack(), type=Format) == form
