"""What the scheduler and the API know of a model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.api.served import default_sampling, model_facts
from coordinator.models.catalog import Model
from coordinator.models.shape import ModelShape
from protocol.values import Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import fake_model


def test_the_scheduler_knows_the_sizes_of_the_models_parts() -> None:
    known = model_facts(fake_model({}, "owner/name", "ab" * 32, num_layers=3))
    assert (known.name, known.manifest_hash, known.num_layers) == ("owner/name", "ab" * 32, 3)
    assert known.layer_numels == facts.model(3).layer_numels
    assert (known.embedding_numel, known.kv_numel_per_token, known.context_length) == (100_000, 10, 1000)


def test_the_scheduler_knows_what_a_row_takes_on_the_wire_and_what_a_token_reads() -> None:
    model = fake_model({}, num_layers=2)
    shape = ModelShape(2, 64, 400, 512, (900, 1000), 1, 1, 16, active_numels=(900, 300), kv_numels=(16, 24))
    known = model_facts(cast(Model, SimpleNamespace(**{**vars(model), "shape": shape})))
    assert (known.hidden_size, known.active_numels, known.kv_numels) == (64, (900, 300), (16, 24))
    assert known.windows == (), "the runtime keeps the KV of sliding layers whole"


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, Sampling(1.0, 1.0, 0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, Sampling(0.7, 0.8, 20)),
        ({"temperature": 0.7, "do_sample": False}, Sampling(0.0, 1.0, 0)),
        ({"temperature": 99, "top_p": 7, "top_k": -1}, Sampling(2.0, 1.0, 0)),
        ({"temperature": "hot", "top_p": None}, Sampling(1.0, 1.0, 0)),
        ({"min_p": 0.05, "repetition_penalty": 1.1}, Sampling(1.0, min_p=0.05, repetition_penalty=1.1)),
        ({"min_p": 3, "repetition_penalty": 0}, Sampling(1.0, min_p=1.0)),
        ({"top_p": 0}, Sampling(1.0, 1.0, 0)),
    ],
)
def test_the_makers_recommendation_is_the_default_as_far_as_it_is_one(
    config: dict[str, Any], sampling: Sampling, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert default_sampling(tmp_path) == sampling


@pytest.mark.parametrize("content", [None, "not JSON", "[]", "\udcff"])
def test_without_a_recommendation_it_is_openais_default(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert default_sampling(tmp_path) == Sampling(1.0, 1.0, 0)
