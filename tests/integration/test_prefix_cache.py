"""The second turn of a chat over two real nodes: what they have of the first one is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from demo.local_pool import local_pool
from protocol.values import KV_BLOCK_TOKENS
from tests.integration.conftest import READY_S, Served
from tests.integration.reference import Reference
from tests.integration.test_kept_rows import wait_computed

NAMES = ("one", "two")
NUM_TOKENS = 12
QUESTION = "a chat that begins with a question of some length"


@pytest.fixture
def pair(tiny_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """Two nodes of two layers each, for a model of four layers."""
    with local_pool(tmp_path, [str(tiny_folder)]) as pool:
        for name in NAMES:
            pool.add_node(name, "--cpu", "--max-layers", "2")
        pool.wait_ready(READY_S)
        yield Served(pool, tiny_folder.name)


def ask(served: Served, messages: list[dict[str, str]]) -> dict[str, Any]:
    return served.complete("", messages=messages, max_tokens=NUM_TOKENS, return_token_ids=True)


def wanted(reference: Reference, prompt: list[int]) -> list[int]:
    """transformers' own answer to these tokens."""
    ids = torch.tensor([prompt])
    stops = list(reference.tokenizer.stop_tokens()) or None
    answer = reference.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=stops,
        pad_token_id=0,
    )  # fmt: skip
    return [int(token) for token in answer[0, len(prompt) :]]


def test_a_second_turn_computes_only_its_new_rows_and_answers_the_same(pair: Served, tiny_folder: Path) -> None:
    reference = Reference(tiny_folder)
    talk = [{"role": "user", "content": QUESTION}]
    first = ask(pair, talk)
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    text = first["choices"][0]["message"]["content"]
    talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "and on it goes"}]
    second = ask(pair, talk)

    before, prompt = reference.tokenizer.encode_chat(talk[:1]), reference.tokenizer.encode_chat(talk)
    num_same = next(at for at, (one, other) in enumerate(zip(before, prompt, strict=False)) if one != other)
    num_cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert num_cached >= num_same // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS > 0
    assert second["choices"][0]["token_ids"] == wanted(reference, prompt)
    wait_computed(pair, dict.fromkeys(NAMES, len(before) + len(prompt) - num_cached))
