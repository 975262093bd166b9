"""OpenAI's answer formats: one JSON object, or server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import msgspec

from coordinator.api.chat import Answer, Chunk
from coordinator.api.errors import pool_error_body
from coordinator.errors import PoolError

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""Proxies close connections that are silent for 30 to 60 s; a comment line costs nothing."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: object) -> bytes:
    """One server-sent event. JSON has no raw newline, so no text of a model can break the frame."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def usage(answer: Answer) -> dict[str, int]:
    totals = answer.totals
    return {
        "prompt_tokens": totals.num_prompt_tokens,
        "completion_tokens": totals.num_tokens,
        "total_tokens": totals.num_prompt_tokens + totals.num_tokens,
    }


def extras(answer: Answer, chunk: Chunk) -> dict[str, Any]:
    """What this pool adds to OpenAI's format: which nodes answered, and where the time went."""
    fields: dict[str, Any] = {}
    if chunk.nodes is not None:
        fields["nodes"] = [asdict(node) for node in chunk.nodes]
    if chunk.finish_reason is not None:
        fields["timing"] = {"compute_us": answer.totals.compute_us, "codec_us": answer.totals.codec_us}
    return fields


def chunk_object(answer: Answer, created_s: int, chunk: Chunk, first: bool) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
    if chunk.text or not (first or chunk.finish_reason):
        delta["content"] = chunk.text
    choice = {"index": 0, "delta": delta, "finish_reason": chunk.finish_reason, "logprobs": None}
    if answer.with_token_ids:
        choice["token_ids"] = chunk.tokens
    body = _head(answer, created_s, "chat.completion.chunk") | {"choices": [choice]}
    added = extras(answer, chunk)
    return body | {"decentllm": added} if added else body


async def sse(
    answer: Answer, chunks: AsyncIterator[Chunk], first: Chunk, created_s: int, include_usage: bool
) -> AsyncIterator[bytes]:
    """The stream of one answer; an error in its middle becomes an error event, because the status is long sent."""
    yield event(chunk_object(answer, created_s, first, first=True))
    try:
        async for chunk in _with_keep_alive(chunks):
            if chunk is None:
                yield KEEP_ALIVE
            elif chunk.text or chunk.nodes or chunk.finish_reason or answer.with_token_ids:
                yield event(chunk_object(answer, created_s, chunk, first=False))
    except PoolError as error:
        log.warning("answer %s broke off: %s", answer.order.session_id[:8], error.code)
        yield event(pool_error_body(error))
        return
    if include_usage:
        yield event(_head(answer, created_s, "chat.completion.chunk") | {"choices": [], "usage": usage(answer)})
    yield DONE


async def completion(answer: Answer, created_s: int) -> dict[str, Any]:
    """The whole answer as one object."""
    text, tokens, last, nodes = "", list[int](), Chunk(), Chunk()
    async for chunk in answer.chunks():
        text += chunk.text
        tokens += chunk.tokens
        last, nodes = chunk, chunk if chunk.nodes is not None else nodes
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}
    if answer.with_token_ids:
        choice["token_ids"] = tokens
    body = _head(answer, created_s, "chat.completion") | {"choices": [choice], "usage": usage(answer)}
    return body | {"decentllm": extras(answer, nodes) | extras(answer, last)}


def _head(answer: Answer, created_s: int, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer.order.session_id}",
        "object": kind,
        "created": created_s,
        "model": answer.model.name,
    }


async def _with_keep_alive(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk | None]:
    """The chunks, with None in between whenever nothing came for KEEP_ALIVE_S."""
    waiting: asyncio.Task[Chunk] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(chunks))
            done, _ = await asyncio.wait({waiting}, timeout=KEEP_ALIVE_S)
            if not done:
                yield None
                continue
            finished, waiting = waiting, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting is not None:
            waiting.cancel()


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk:
    return await anext(chunks)
