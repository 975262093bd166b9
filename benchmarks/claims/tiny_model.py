"""A model that costs next to nothing to compute and as much to send as a real one: wide rows, thin layers.

How long a layer takes is then a matter of each node's pace, not of the machine that plays all nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer

NUM_LAYERS = 12
VOCAB_SIZE = 384
STOP_TOKEN = 2
"""Of the tiny tokenizer."""
SHAPE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": NUM_LAYERS,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
"""A row is 4 KiB in float32: as wide as those of a 2048-wide model in bfloat16."""
WEIGHTS = "model.safetensors"


def make_tiny_model(folder: Path, architecture: str = "qwen3", **changes: int) -> Path:
    """Write the model once; a folder that is there is taken as it is. `changes` are of the shape."""
    if not (folder / "tokenizer.json").exists():
        shape = {"vocab_size": VOCAB_SIZE, **SHAPE, **changes}
        save_tiny(architecture, folder, **shape)
        _never_stop(folder / WEIGHTS)
        save_tokenizer(folder, shape["vocab_size"])
    return folder


def _never_stop(weights: Path) -> None:
    """So that greedy answers are as long as asked for: the stop token's score is that of the likeliest other, less."""
    tensors = load_file(weights)
    head = tensors["lm_head.weight"]
    with torch.no_grad():
        head[STOP_TOKEN] = 0.0
    save_file(tensors, weights, metadata={"format": "pt"})
