"""What transformers' own `generate` answers: the truth that every pool is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from coordinator.models.tokenizer import ChatTokenizer


class Reference:
    """A whole model in this process, float32, greedy."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.tokenizer = ChatTokenizer.load(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def tokens(self, content: str, num_tokens: int, repetition_penalty: float = 1.0) -> list[int]:
        """Token ids of the greedy answer, up to and including the stop token."""
        prompt = torch.tensor([self.tokenizer.encode_chat([{"role": "user", "content": content}])])
        answer = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=num_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=repetition_penalty,
            eos_token_id=list(self.tokenizer.stop_tokens()) or None,
            pad_token_id=0,
        )
        return [int(token) for token in answer[0, prompt.shape[1] :]]
