"""What transformers itself says: greedy generation and logits of the uncut model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel


def full_model(folder: Path) -> PreTrainedModel:
    """Eager attention: the model file's own formula."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    return model


def generate(folder: Path, prompts: Sequence[Sequence[int]], num_new: int) -> list[list[int]]:
    """Greedy tokens of each prompt, alone."""
    model = full_model(folder)
    return [_generate(model, prompt, num_new) for prompt in prompts]


def generate_multimodal(folder: Path, prompts: Sequence[Sequence[int]], num_new: int) -> list[list[int]]:
    """Greedy tokens of a model with its vision tower, asked without images."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return [_generate(model.eval(), prompt, num_new) for prompt in prompts]


def _generate(model: PreTrainedModel, prompt: Sequence[int], num_new: int) -> list[int]:
    output = model.generate(torch.tensor([list(prompt)]), max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@torch.inference_mode()
def logits(folder: Path, tokens: Sequence[int]) -> Tensor:
    """[tokens, vocabulary]"""
    found: Tensor = full_model(folder)(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return found


def random_prompts(lengths: Sequence[int], seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 380, (length,), generator=generator).tolist() for length in lengths]
