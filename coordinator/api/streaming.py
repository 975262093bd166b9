"""OpenAI's answer formats: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.api.chat import Answer, Chunk
from coordinator.api.errors import pool_error_body
from coordinator.api.logprobs import choice_logprobs
from coordinator.api.resuming import event_id
from coordinator.api.unread import Unread
from coordinator.errors import PoolError, RequestRefused
from protocol.values import TokenLogprobs

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""Proxies close connections that are silent for 30 to 60 s; a comment line costs nothing."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Reading:
    """An answer that is read in a task of its own. Ending it awaits nothing: a response whose client has left is
    cancelled, again at each await, and could not close the generation itself."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._unread = Unread()
        self._task = asyncio.create_task(self._read(chunks))

    async def next(self) -> Chunk | None:
        """The next chunk, None behind the last. Raises what the answer raises."""
        item = await self._unread.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop the generation if it still runs."""
        self._task.cancel()

    async def _read(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._unread.put(chunk)
            self._unread.end(None)
        except Exception as error:  # noqa: BLE001 - for whoever reads: it is raised by next()
            self._unread.end(error)


class AnswerStream(StreamingResponse):
    """Server-sent events. However the response ends, and even if it never begins, the generation ends with it."""

    def __init__(self, reading: Reading, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers=STREAM_HEADERS, media_type="text/event-stream")
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reading.close()


def event(data: object, name: str = "") -> bytes:
    """One server-sent event, with its id if it has one. JSON has no raw newline, so no text of a model can break the
    frame."""
    lines = b"data: " + msgspec.json.encode(data) + b"\n\n"
    return b"id: " + name.encode() + b"\n" + lines if name else lines


def usage(answer: Answer) -> dict[str, Any]:
    """`cached_tokens` are those of the prompt that no stage had to compute."""
    totals = answer.totals
    return {
        "prompt_tokens": totals.num_prompt_tokens,
        "completion_tokens": totals.num_tokens,
        "total_tokens": totals.num_prompt_tokens + totals.num_tokens,
        "prompt_tokens_details": {"cached_tokens": totals.num_cached_tokens},
    }


def extras(answer: Answer, chunk: Chunk) -> dict[str, Any]:
    """What this pool adds to OpenAI's format: the place in the queue, which nodes answer, where the time went."""
    fields: dict[str, Any] = {}
    if chunk.queue is not None:
        fields["queue"] = asdict(chunk.queue)
    if chunk.nodes is not None:
        fields["nodes"] = [asdict(node) for node in chunk.nodes]
    if chunk.finish_reason is not None or (answer.format.with_token_ids and chunk.tokens):
        fields["timing"] = {"compute_us": answer.totals.compute_us, "codec_us": answer.totals.codec_us}
    return fields


def chunk_object(answer: Answer, chunk: Chunk, first: bool) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
    if chunk.text or not (first or chunk.finish_reason or chunk.queue):
        delta["content"] = chunk.text
    choice = {"index": 0, "delta": delta, "finish_reason": chunk.finish_reason}
    choice["logprobs"] = choice_logprobs(answer, chunk)
    if answer.format.with_token_ids:
        choice["token_ids"] = chunk.tokens
    body = _head(answer, "chat.completion.chunk") | {"choices": [choice]}
    added = extras(answer, chunk)
    return body | {"decentllm": added} if added else body


async def sse(answer: Answer, reading: Reading, first: Chunk | None = None) -> AsyncIterator[bytes]:
    """The stream of one answer; an error in its middle becomes an error event, because the status is long sent.

    Without its first chunk the client has some of it: then nothing is said that it has heard."""
    is_begun = answer.num_seen > 0
    if first is not None:
        is_begun = True
        yield _named(answer, first, first=True)
    try:
        async for chunk in _with_keep_alive(reading):
            if chunk is None:
                yield KEEP_ALIVE
            elif _says_something(chunk) or _wants_each_token(answer):
                yield _named(answer, chunk, first=not is_begun)
                is_begun = True
    except PoolError as error:
        level = logging.INFO if isinstance(error, RequestRefused) else logging.WARNING  # refused: it waited in vain
        log.log(level, "answer %s broke off: %s", answer.order.session_id[:8], error.code)
        yield event(pool_error_body(error))
        return
    if answer.format.include_usage:
        yield event(_head(answer, "chat.completion.chunk") | {"choices": [], "usage": usage(answer)})
    yield DONE


def _named(answer: Answer, chunk: Chunk, first: bool) -> bytes:
    return event(chunk_object(answer, chunk, first), event_id(answer.claim.answer_id, chunk.num_tokens))


def _wants_each_token(answer: Answer) -> bool:
    """Also those whose text is held back."""
    return answer.format.with_token_ids or answer.order.sampling.num_logprobs is not None


def _says_something(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.queue or chunk.nodes or chunk.finish_reason)


async def completion(answer: Answer) -> dict[str, Any]:
    """The whole answer as one object."""
    tokens, logprobs, last, nodes = list[int](), list[TokenLogprobs](), Chunk(), Chunk()
    text = ""
    async for chunk in answer.chunks():
        text += chunk.text
        tokens += chunk.tokens
        logprobs += chunk.logprobs
        last, nodes = chunk, chunk if chunk.nodes is not None else nodes
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": last.finish_reason}
    choice["logprobs"] = choice_logprobs(answer, Chunk(tokens=tuple(tokens), logprobs=tuple(logprobs)))
    if answer.format.with_token_ids:
        choice["token_ids"] = tokens
    body = _head(answer, "chat.completion") | {"choices": [choice], "usage": usage(answer)}
    return body | {"decentllm": extras(answer, nodes) | extras(answer, last)}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.claim.answer_id,
        "object": kind,
        "created": answer.format.created_s,
        "model": answer.model.name,
    }


async def _with_keep_alive(reading: Reading) -> AsyncIterator[Chunk | None]:
    """The chunks, with None in between whenever nothing came for KEEP_ALIVE_S."""
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                chunk = await reading.next()
        except TimeoutError:
            yield None
            continue
        if chunk is None:
            return
        yield chunk
