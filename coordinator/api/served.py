"""What the scheduler and the API know of a model that the catalog has opened."""

from __future__ import annotations

import json
from pathlib import Path

from coordinator.api.chat import ServedModel
from coordinator.models.catalog import Model
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.scheduler.state import ModelFacts
from protocol.values import Sampling


def model_facts(model: Model) -> ModelFacts:
    """What the scheduler knows of a model. `windows` stays empty: the runtime keeps the KV of sliding layers whole."""
    shape = model.shape
    return ModelFacts(
        name=model.name,
        manifest_hash=model.manifest_hash,
        context_length=shape.context_length,
        layer_numels=shape.layer_numels,
        embedding_numel=shape.embedding_numel,
        head_numel=shape.head_numel,
        kv_numel_per_token=shape.kv_numel_per_token,
        hidden_size=shape.hidden_size,
        active_numels=shape.active_numels,
        kv_numels=shape.kv_numels,
        packed_layers=shape.packed_layers,
        packed_embedding=shape.packed_embedding,
        packed_head=shape.packed_head,
        quantisation=model.manifest.quantisation,
        min_session_tokens=shape.min_session_tokens,
    )


def served_model(model: Model, created_s: int) -> ServedModel:
    """What the API knows of a model. Reads its tokenizer: call it off the event loop. Raises ModelError."""
    tokenizer = ChatTokenizer.load(model.tokenizer_folder)
    return ServedModel(
        name=model.name,
        manifest_hash=model.manifest_hash,
        num_layers=model.shape.num_layers,
        context_length=model.shape.context_length,
        tokenizer=tokenizer,
        stop_tokens=tokenizer.stop_tokens(),
        vocab_size=model.shape.vocab_size,
        default_sampling=default_sampling(model.tokenizer_folder),
        created_s=created_s,
    )


def default_sampling(folder: Path) -> Sampling:
    """What the model's makers recommend (generation_config.json); OpenAI's default, temperature 1, without it."""
    try:
        config = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = {}
    config = config if isinstance(config, dict) else {}
    given = {name: config.get(name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    usable = {name: value for name, value in given.items() if isinstance(value, int | float) and value >= 0}
    return Sampling(
        temperature=min(2.0, float(usable.get("temperature", 1.0))),
        top_p=min(1.0, float(usable.get("top_p", 1.0)) or 1.0),
        top_k=int(usable.get("top_k", 0)),
        min_p=min(1.0, float(usable.get("min_p", 0.0))),
        repetition_penalty=min(10.0, float(usable.get("repetition_penalty", 1.0)) or 1.0),
    )
