"""The model that is served: to the coordinator a checkpoint like any other, to workers the simulation's toy, whose
every token depends on every row that any stage has kept (tests/simulation/model.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from coordinator.models.tokenizer import ChatTokenizer
from coordinator.sessions import Order
from protocol.values import Sampling, SessionId
from tests.fakes.tiny_tokenizer import save_tokenizer
from tests.simulation.model import HIDDEN_SIZE, NUM_LAYERS, VOCAB_SIZE, undisturbed

NAME = "toy"
CONTEXT_LENGTH = 4096
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": HIDDEN_SIZE,
    "max_position_embeddings": CONTEXT_LENGTH,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def make_toy_model(folder: Path, num_layers: int = NUM_LAYERS) -> Path:
    """Write the checkpoint into `folder`, which is new; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": num_layers}), encoding="utf-8")
    square = np.zeros((HIDDEN_SIZE, HIDDEN_SIZE), np.float32)
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in range(num_layers)]
    ends = {
        name: np.zeros((VOCAB_SIZE, HIDDEN_SIZE), np.float32)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    norm = {"model.norm.weight": np.zeros(HIDDEN_SIZE, np.float32)}
    save_file(dict.fromkeys(names, square) | ends | norm, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder, VOCAB_SIZE)
    return folder


class Oracle:
    """What an undisturbed pool answers."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = ChatTokenizer.load(folder)

    def prompt(self, content: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode_chat([{"role": "user", "content": content}]))

    def answer(self, content: str, num_tokens: int, sampling: Sampling) -> list[int]:
        """Token ids; the toy never samples the tokenizer's stop token."""
        order = Order(SessionId("0" * 32), "", self.prompt(content), num_tokens, sampling, stop_tokens=())
        return list(undisturbed(order).tokens)
