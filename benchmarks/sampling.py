"""What choosing tokens costs: `python -m benchmarks.sampling [--sessions ...]`, on one GPU.

Decodes Qwen3-8B's shape with random weights, as benchmarks/runtime.py does, with each kind of sampling in turn; the
likeliest token is the reference. Random weights leave thousands of tokens about equally likely, so top_p alone, which
keeps a few tokens of a trained model, is not among the kinds.
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch
from msgspec import structs

from benchmarks.machine import describe_machine
from benchmarks.runtime import PROMPT_TOKENS, Card, Served, whole_stage
from protocol.values import Sampling

RECOMMENDED = Sampling(0.6, 0.95, 20, seed=7)
"""By the makers of Qwen3 (its generation_config.json)."""
PENALISED = structs.replace(
    RECOMMENDED, presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.05, answer_from=PROMPT_TOKENS
)
KINDS = {
    "the likeliest": Sampling(),
    "temperature 1": Sampling(1.0, seed=7),
    "temperature 0.6, top_p 0.95, top_k 20": RECOMMENDED,
    "the same with three penalties": PENALISED,
    "the same with penalties and 5 logprobs": structs.replace(PENALISED, num_logprobs=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 16, 64])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)  # as the worker
    card = Card()
    print(f"{torch.cuda.get_device_name()}; {describe_machine()}\n")
    print("| sampling | " + " | ".join(f"{num}: tokens/s | us a step" for num in arguments.sessions) + " |")
    print("|---" * (1 + 2 * len(arguments.sessions)) + "|")
    stage = whole_stage(card)
    for name, sampling in KINDS.items():
        served = Served(stage, 512, sampling)
        rates = [max(served.decode(num).tokens_per_s for _ in range(2)) for num in arguments.sessions]
        cells = [f"{rate:,.0f} | {1e6 * num / rate:,.0f}" for num, rate in zip(arguments.sessions, rates, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
