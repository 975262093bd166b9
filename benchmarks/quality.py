"""What fewer bits cost in quality: `python -m benchmarks.quality MODEL_FOLDER [--text FILE] [--characters N]`.

Perplexity of a real model on a fixed text, with its weights as they were published, in 8 and in 4 bits, computed by the
stage that a worker runs, on the CPU in float32. Prints a markdown table. Lower is better; the ratio to the original
is what packing costs.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from client.runtime.architecture import read_architecture
from client.runtime.batch import lay_out
from client.runtime.cut import CutModel
from client.runtime.device import Device
from client.runtime.loading import load_folder, read_config
from client.runtime.packed_loading import load_packed
from client.runtime.stage import Stage
from protocol.values import LayerRange, Quantisation

ROOT = Path(__file__).resolve().parent.parent
KV_BYTES = 2**28


def load(folder: Path, kind: Quantisation | None, device: Device) -> CutModel:
    layers = LayerRange(0, read_architecture(read_config(folder)).num_layers)
    if kind is None:
        return load_folder(folder, layers, torch.float32, device, lambda done, total: None)
    return load_packed(folder, layers, kind, (torch.float32, device), lambda done, total: None)


def perplexity(stage: Stage, tokens: list[int]) -> float:
    """Of all tokens but the first, each seen with those before it."""
    layout = lay_out([(stage.cache.open(len(tokens)), len(tokens))])
    logits = stage.forward(layout, torch.tensor(tokens), list(range(len(tokens) - 1)))
    return math.exp(float(F.cross_entropy(logits.float(), torch.tensor(tokens[1:]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, default=ROOT / "docs" / "scheduling.md")
    parser.add_argument("--characters", type=int, default=3000)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = Device.open("cpu")
    text = arguments.text.read_text(encoding="utf-8")[: arguments.characters]
    tokens = Tokenizer.from_file(str(arguments.folder / "tokenizer.json")).encode(text).ids
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    print(f"{arguments.folder.name}; {describe_machine()}")
    print(f"{arguments.text.name}: {len(text)} characters, SHA-256 {digest}..., {len(tokens)} tokens\n")
    print("| weights | MB | perplexity | of the original's | loading |\n|---|---|---|---|---|", flush=True)
    original = None
    for kind in (None, *Quantisation):
        begin = time.perf_counter()
        stage = Stage(load(arguments.folder, kind, device), KV_BYTES, torch.float32, device)
        loaded_s = time.perf_counter() - begin
        found = perplexity(stage, tokens)
        original = original or found
        label = kind or "float32"
        size = stage.weight_bytes / 1e6
        print(f"| {label} | {size:,.0f} | {found:.2f} | {found / original:.3f} | {loaded_s:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
