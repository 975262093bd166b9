"""Real pools of real processes: a coordinator, agents and torch workers on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.app import model_facts
from coordinator.models.catalog import Catalog
from coordinator.scheduler.cost import memory_for
from demo.local_pool import ROOT, LocalPool, local_pool
from protocol.values import Variant
from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer

QWEN = "qwen2.5-coder-0.5b-instruct"
GEMMA = "gemma-3-270m"
VOCAB_SIZE = 384
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
        answer = httpx.post(f"{self.pool.url}/v1/chat/completions", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def tokens(self, content: str, num_tokens: int) -> list[int]:
        """Token ids of a greedy answer."""
        answer = self.complete(content, max_tokens=num_tokens, return_token_ids=True)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def events(self, content: str, **options: Any) -> Iterator[dict[str, Any]]:
        """A streamed answer's events."""
        body = self.body(content, stream=True, **options)
        with httpx.stream("POST", f"{self.pool.url}/v1/chat/completions", json=body, timeout=300) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])

    def body(self, content: str, **options: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, **options}


def save_tiny_chat(architecture: str, folder: Path, **changes: Any) -> Path:
    """A tiny random model with a tokenizer, ready for a catalog."""
    save_tiny(architecture, folder, vocab_size=VOCAB_SIZE, **changes)
    save_tokenizer(folder, VOCAB_SIZE)
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
