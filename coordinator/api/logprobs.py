"""How likely the model found its tokens, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from coordinator.api.chat import Answer, Chunk
from coordinator.models.tokenizer import ChatTokenizer


def choice_logprobs(answer: Answer, chunk: Chunk) -> dict[str, Any] | None:
    """The `logprobs` of a choice, for the tokens of this chunk; None if they were not asked for. What ends an answer
    without being part of it has none."""
    wanted = answer.order.sampling.num_logprobs
    if wanted is None:
        return None
    tokenizer, content = answer.model.tokenizer, []
    for token, known in zip(chunk.tokens, chunk.logprobs, strict=True):
        if token in answer.order.stop_tokens:
            continue
        likeliest = [_entry(tokenizer, other, logprob) for other, logprob in known.likeliest[:wanted]]
        content.append(_entry(tokenizer, token, known.sampled) | {"top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def _entry(tokenizer: ChatTokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
