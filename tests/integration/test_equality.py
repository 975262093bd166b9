"""Greedy answers over 1, 2 and 3 nodes are, token for token, those of transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.local_pool import LocalPool, local_pool
from tests.integration.conftest import GEMMA, QWEN, READY_S, Served, memory_limits, save_tiny_chat
from tests.integration.reference import Reference

TINY = ("llama", "qwen3", "gemma3", "qwen3_moe", "gpt_oss")
PROMPTS = ("hello", "Which of these words is the longest of all, and how many letters does it have?")
NUM_TINY_TOKENS = 24
NUM_REAL_TOKENS = 16
LAYERS_PER_NODE = 2


@pytest.fixture(scope="module")
def three_nodes(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalPool, Path]]:
    """Three nodes of two layers each, which outlive their coordinators and come back to the next one."""
    folder = tmp_path_factory.mktemp("three-nodes")
    with local_pool(folder, [str(tiny_folder)]) as pool:
        for name in ("one", "two", "three"):
            pool.add_node(name, "--cpu", "--max-layers", str(LAYERS_PER_NODE))
        pool.wait_ready(READY_S)
        yield pool, folder


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
@pytest.mark.parametrize("architecture", TINY)
def test_a_tiny_model_answers_as_generate_does(
    architecture: str, num_nodes: int, three_nodes: tuple[LocalPool, Path], tmp_path: Path
) -> None:
    nodes, folder = three_nodes
    layers = LAYERS_PER_NODE * num_nodes
    model = save_tiny_chat(architecture, tmp_path / f"tiny-{architecture}-{layers}", num_hidden_layers=layers)
    nodes.coordinator.stop()
    port = int(nodes.url.rpartition(":")[2])
    with local_pool(folder, [str(model)], port=port) as pool:
        pool.wait_ready(READY_S)
        served, reference = Served(pool, model.name), Reference(model)
        for prompt in PROMPTS:
            assert served.tokens(prompt, NUM_TINY_TOKENS) == reference.tokens(prompt, NUM_TINY_TOKENS)
            penalised = served.tokens(prompt, NUM_TINY_TOKENS, repetition_penalty=1.3)
            assert penalised == reference.tokens(prompt, NUM_TINY_TOKENS, repetition_penalty=1.3)
        assert len(served.complete("hi", max_tokens=1)["decentllm"]["nodes"]) == num_nodes


@pytest.fixture(scope="module", params=[GEMMA, QWEN])
def real_model(request: pytest.FixtureRequest, models_folder: Path) -> tuple[Path, dict[str, list[int]]]:
    """A real model's folder and its reference answers; the reference model itself is not kept in memory."""
    folder = models_folder / request.param
    reference = Reference(folder)
    return folder, {prompt: reference.tokens(prompt, NUM_REAL_TOKENS) for prompt in PROMPTS}


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept from pool to pool: weights that a node has are not downloaded again."""
    return tmp_path_factory.mktemp("real-nodes")


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_a_real_model_answers_as_generate_does(
    num_nodes: int, real_model: tuple[Path, dict[str, list[int]]], node_folder: Path
) -> None:
    folder, expected = real_model
    size = memory_limits(folder, node_folder, num_nodes) if num_nodes > 1 else 8 * 10**9
    with local_pool(node_folder, [str(folder)]) as pool:
        for number in range(num_nodes):
            pool.add_node(f"node{number}", "--cpu", "--max-memory", str(size))
        pool.wait_ready(READY_S)
        served = Served(pool, folder.name)
        assert {prompt: served.tokens(prompt, NUM_REAL_TOKENS) for prompt in expected} == expected
        assert len(served.complete("hi", max_tokens=1)["decentllm"]["nodes"]) == num_nodes
