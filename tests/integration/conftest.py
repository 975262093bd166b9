"""Real pools of real processes: a coordinator, agents and torch workers on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from safetensors.torch import load_file, save_file

from coordinator.api.served import model_facts
from coordinator.models.catalog import Catalog
from coordinator.scheduler.cost import memory_for
from demo.local_pool import ROOT, LocalPool, local_pool
from protocol.values import Variant
from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer
from tests.integration.chromium import launched

QWEN = "qwen2.5-coder-0.5b-instruct"
GEMMA = "gemma-3-270m"
VOCAB_SIZE = 384
STOP_TOKEN = 2
"""Of tiny models (tests/fakes/tiny_models.py)."""
READY_S = 300.0


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Where `make models-for-tests` has put the two real models."""
    folder = Path(os.environ.get("DECENTLLM_TEST_MODELS", ROOT / "models"))
    for name in (QWEN, GEMMA):
        if not (folder / name / "config.json").exists():
            pytest.fail(f"the model {name} is not in {folder}: run `make models-for-tests` first")
    return folder


@dataclass(frozen=True)
class Served:
    """A running pool that serves one model."""

    pool: LocalPool
    model: str

    def complete(self, content: str, **options: Any) -> dict[str, Any]:
        """A whole answer; greedy unless told otherwise."""
        body = self.body(content, **options)
        answer = self.pool.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def tokens(self, content: str, num_tokens: int, **options: Any) -> list[int]:
        """Token ids of a greedy answer."""
        answer = self.complete(content, max_tokens=num_tokens, return_token_ids=True, **options)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def events(self, content: str, **options: Any) -> Iterator[dict[str, Any]]:
        """A streamed answer's events."""
        body = self.body(content, stream=True, **options)
        with self.pool.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])

    def body(self, content: str, **options: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, **options}


def links_of(invitation: str) -> dict[str, str]:
    """What `decentllm-coordinator invite` printed, by the words before the links."""
    return dict(line.split(": ", 1) for line in invitation.splitlines()[1:])


def save_tiny_chat(architecture: str, folder: Path, **changes: Any) -> Path:
    """A tiny random model with a tokenizer, ready for a catalog."""
    save_tiny(architecture, folder, vocab_size=VOCAB_SIZE, **changes)
    save_tokenizer(folder, VOCAB_SIZE)
    return folder


def save_endless_chat(folder: Path, **changes: Any) -> Path:
    """A tiny random Llama of four layers, whose greedy answers are as long as was asked for."""
    save_tiny_chat("llama", folder, num_hidden_layers=4, **changes)
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    head[STOP_TOKEN] = (head[STOP_TOKEN + 1] + head[STOP_TOKEN + 2]) / 2  # so it is never the likeliest of the three
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def memory_limits(model_folder: Path, scratch: Path, num_nodes: int) -> int:
    """Bytes per node with which it takes that many nodes to hold the model."""
    model = Catalog(scratch / "limits").add(str(model_folder))
    share = -(-model.shape.num_layers // num_nodes)
    return memory_for(model_facts(model), Variant.FLOAT32, share + (1 if num_nodes > 1 else 0))


@pytest.fixture(scope="session")
def real_pool(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The instruct model over two nodes; shared by all tests that only ask it something."""
    folder = tmp_path_factory.mktemp("real-pool")
    size = memory_limits(models_folder / QWEN, folder, 2)
    with local_pool(folder, [str(models_folder / QWEN)], "--name", "Demo pool") as pool:
        for name in ("alice", "bob"):
            pool.add_node(name, "--cpu", "--max-memory", str(size))
        pool.wait_ready(READY_S)
        yield Served(pool, QWEN)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama of four layers."""
    return save_tiny_chat("llama", tmp_path_factory.mktemp("tiny") / "tiny-llama", num_hidden_layers=4)


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with long answers: what has to happen in their middle, can."""
    return save_endless_chat(tmp_path_factory.mktemp("endless") / "tiny-endless", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. For one module: while it runs, asyncio.run does not work in this thread."""
    with launched() as browser:
        yield browser
