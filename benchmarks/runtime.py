"""The layer runtime on one GPU, in-process as the worker runs it: `python -m benchmarks.runtime [--rows ...]`.

Random weights of real shapes. Prints a markdown table, and with `--out` writes the figures as JSON. Figures are set
against what the card does in the same run: read bandwidth and the rate of a large matrix product. Rows:

  decode     Qwen3-8B in one stage: tokens/s of 1, 16 and 64 sessions with prompts of 128 tokens
  prefill    the same, prompts of 4,096 tokens, by the rows that a step takes at most
  layer      a Llama-8B layer at context 2,048 with 1, 8 and 64 sessions, as a share of the read roofline
  reference  transformers' `generate` on the decode and prefill rows; `compiled`: with a static cache, compiled
  packed     decode and prefill with weights in 8 and 4 bits, with Triton; `plain-packed`: decode without
  plain      decode and layer without Triton and torch.compile, as on a machine without a C compiler
"""

from __future__ import annotations

import argparse
import array
import gc
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.machine import describe_machine
from client.ipc import EndSession, Sampled, SessionFailed, StartSession, WorkerMessage
from client.runtime import paged_forward
from client.runtime.architecture import Architecture, read_architecture
from client.runtime.batch import lay_out
from client.runtime.benchmark import random_cut
from client.runtime.device import Device
from client.runtime.engine import Engine
from client.runtime.stage import Stage
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.values import Quantisation, Sampling, SessionId, StopRule

QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "tie_word_embeddings": False, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
"""Published in the models' config.json (Qwen/Qwen3-8B, meta-llama/Llama-3.1-8B but for its rotary scaling)."""

ROWS = ("decode", "prefill", "layer", "packed", "plain-packed", "reference", "compiled", "plain")
PROMPT_TOKENS, LONG_PROMPT, LAYER_CONTEXT = 128, 4096, 2048
NUM_LAYERS_TIMED = 4
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Figure:
    """One line of the table. `limit`: what the card's measured rates allow, in the same unit."""

    what: str
    value: float
    unit: str
    limit: float | None = None


class Card:
    """The device with its rates: bytes read per second, bf16 operations per second."""

    def __init__(self) -> None:
        self.device = Device.open("cuda:0")
        data = torch.empty(2**30, dtype=torch.uint8, device="cuda").view(torch.int64)
        # Many in a row: alone, a read of 0.35 ms loses 5 % to its launch, and every share below would look better.
        self.read_rate = 2**30 / steady_s(data.sum)
        left, right = (torch.randn(8192, 8192, device="cuda", dtype=DTYPE) for _ in range(2))
        self.matrix_rate = 2 * 8192**3 / steady_s(lambda: left @ right)

    def free(self) -> None:
        """Give back what a measurement has used, and say if anything holds on to it."""
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{torch.cuda.memory_allocated() / 2**30:.1f} GiB still allocated", file=sys.stderr)


def timed_s(step: Callable[[], object], repetitions: int = 20) -> float:
    """Median seconds of `step` on the device, by events."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return float(statistics.median(times))


class Sink:
    """An outbox that keeps counts only."""

    def __init__(self) -> None:
        self.num_sampled = 0

    def send_message(self, message: WorkerMessage) -> None:
        if isinstance(message, SessionFailed):
            raise RuntimeError(f"a session failed: {message.message}")
        self.num_sampled += isinstance(message, Sampled)

    def send_frame(self, link: int, frame: Frame) -> None:
        raise AssertionError("one stage sends its rows nowhere")


class Served:
    """A whole model behind an engine."""

    _numbers = count()

    def __init__(self, stage: Stage, max_batch_tokens: int) -> None:
        self.sink = Sink()
        self.engine = Engine(stage, self.sink, max_batch_tokens)
        self._open: list[str] = []

    def start(self, num_prompt: int, num_new: int) -> None:
        """Open a session and hand it a random prompt."""
        session_id = f"{next(self._numbers):032x}"
        total = num_prompt + num_new
        self.engine.start(
            StartSession(session_id, 1, 0, 1, num_prompt, total, None, 0, sampling=Sampling(), stop=StopRule(total))
        )
        self._open.append(session_id)
        tokens = torch.randint(3, 150_000, (num_prompt,), dtype=torch.int32).tolist()
        segment = Segment(SessionId(session_id), 1, 0, num_prompt, 0, 0, Phase.PREFILL)
        frame = Frame(FrameKind.TOKENS, WireDtype.INT32, 1, (segment,), array.array("i", tokens).tobytes())
        self.engine.receive(encode_frame(frame))

    def step_until(self, num_sampled: int) -> None:
        while self.sink.num_sampled < num_sampled:
            self.engine.step()

    def end(self) -> None:
        for session_id in self._open:
            self.engine.end(EndSession(session_id, 1))
        self._open.clear()
        self.sink.num_sampled = 0

    def decode_rate(self, num_sessions: int, num_steps: int = 100) -> float:
        """Tokens per second of all sessions together, once their prompts are done."""
        for _ in range(num_sessions):
            self.start(PROMPT_TOKENS, num_steps + 64)
        self.step_until(num_sessions)
        for _ in range(12 + PROMPT_TOKENS * num_sessions // 512):
            self.engine.step()
        before, begin = self.sink.num_sampled, time.perf_counter()
        for _ in range(num_steps):
            self.engine.step()
        seconds = time.perf_counter() - begin
        num_sampled = self.sink.num_sampled - before
        self.end()
        return float(num_sampled / seconds)

    def prefill_rate(self) -> float:
        """Prompt tokens per second up to the first token of the answer; the best of three."""
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            self.start(LONG_PROMPT, 1)
            self.step_until(1)
            times.append(time.perf_counter() - begin)
            self.end()
        return LONG_PROMPT / min(times)


def decode_rows(card: Card, stage: Stage, label: str) -> Iterator[Figure]:
    for num_sessions in (1, 16, 64):
        served = Served(stage, 512)
        rate = max(served.decode_rate(num_sessions) for _ in range(2))
        context = PROMPT_TOKENS + 64
        kv_bytes = num_sessions * context * sum(shape.num_elements for shape in stage.cache.shapes) * 2
        limit = num_sessions * card.read_rate / (read_bytes(stage) + kv_bytes)
        yield Figure(f"Qwen3-8B decode, {num_sessions} sessions, {label}", rate, "tokens/s", limit)


def read_bytes(stage: Stage) -> int:
    """What a decode step reads of the weights: all but the embedding."""
    embedding = stage.cut.model.get_input_embeddings()
    return stage.weight_bytes - sum(int(parameter.nbytes) for parameter in embedding.parameters())


def prefill_rows(card: Card, stage: Stage, label: str = "default") -> Iterator[Figure]:
    for max_rows in (512, 2048, 4096):
        rate = Served(stage, max_rows).prefill_rate()
        limit = card.matrix_rate / (prefill_operations(QWEN3_8B) / LONG_PROMPT)
        yield Figure(f"Qwen3-8B prefill of {LONG_PROMPT}, steps of {max_rows}, {label}", rate, "tokens/s", limit)


def prefill_operations(shape: dict[str, Any]) -> float:
    """Multiplications and additions of a LONG_PROMPT, attention included, without the head."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"] * shape["head_dim"]
    kv_heads = shape["num_key_value_heads"] * shape["head_dim"]
    weights = 2 * hidden * heads + 2 * hidden * kv_heads + 3 * hidden * shape["intermediate_size"]
    attention = 4 * heads * LONG_PROMPT / 2
    return float(shape["num_hidden_layers"] * LONG_PROMPT * (2.0 * weights + attention))


def layer_rows(card: Card, label: str) -> Iterator[Figure]:
    architecture = architecture_of(LLAMA_8B)
    cut = random_cut(architecture, 14, 14 + NUM_LAYERS_TIMED, DTYPE, card.device)
    stage = Stage(cut, 3 * 2**30, DTYPE, card.device)
    for layer in stage.cache.layers.values():
        layer.keys.normal_()
        layer.values.normal_()
    for num_sessions in (1, 8, 16, 64):
        tables = [stage.cache.open(LAYER_CONTEXT) for _ in range(num_sessions)]
        for table in tables:
            table.advance(LAYER_CONTEXT - 1)
        layout = lay_out([(table, 1) for table in tables])
        hidden = torch.randn(num_sessions, stage.hidden_size, dtype=torch.float32).to(DTYPE)
        seconds = steady_s(lambda layout=layout, hidden=hidden: stage.forward(layout, hidden, []))  # type: ignore[misc]
        kv_bytes = num_sessions * LAYER_CONTEXT * sum(shape.num_elements for shape in stage.cache.shapes) * 2
        ideal = (stage.weight_bytes + kv_bytes) / card.read_rate
        what = f"Llama-8B layer, context {LAYER_CONTEXT}, batch {num_sessions}, {label}"
        yield Figure(what + ", share of the read roofline", ideal / seconds, "", 1.0)
        yield Figure(what, seconds / NUM_LAYERS_TIMED * 1e6, "us", ideal / NUM_LAYERS_TIMED * 1e6)
        for table in tables:
            stage.cache.close(table)


def steady_s(step: Callable[[], object], repetitions: int = 60) -> float:
    """Seconds per step of many in a row: launches overlap with the device's work."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repetitions):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repetitions


def reference_rows(compiled: bool) -> Iterator[Figure]:
    """transformers' own generate over the same shape."""
    config = architecture_of(QWEN3_8B).config
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa").eval()
    extra = {"cache_implementation": "static"} if compiled else {}
    kind = "compiled, static cache" if compiled else "eager"
    for num_sessions in (1,) if compiled else (1, 16, 64):
        prompts = torch.randint(3, 150_000, (num_sessions, PROMPT_TOKENS), device="cuda")
        rate = _generate_rate(model, prompts, 64 if compiled else 16, extra)
        yield Figure(f"transformers generate, {kind}: decode of {num_sessions}", rate, "tokens/s")
    if not compiled:
        prompt = torch.randint(3, 150_000, (1, LONG_PROMPT), device="cuda")
        with torch.inference_mode():
            seconds = timed_s(lambda: model(prompt, use_cache=False, logits_to_keep=1), 3)
        yield Figure(f"transformers forward, {kind}: prefill of {LONG_PROMPT}", LONG_PROMPT / seconds, "tokens/s")


def _generate_rate(model: Any, prompts: torch.Tensor, num_new: int, extra: dict[str, Any]) -> float:
    """Decoded tokens per second: the time of a long answer less that of a short one."""

    def seconds(length: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length, min_new_tokens=length,
            do_sample=False, pad_token_id=0, **extra,
        )  # fmt: skip
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds(num_new + 2)
    seconds(2)
    return float(len(prompts) * num_new) / (
        min(seconds(num_new + 2) for _ in range(2)) - min(seconds(2) for _ in range(2))
    )


def architecture_of(shape: dict[str, Any]) -> Architecture:
    return read_architecture(json.dumps(shape))


def measure(card: Card, rows: list[str]) -> Iterator[Figure]:
    if "layer" in rows:
        yield from layer_rows(card, "default")
        card.free()
    if "decode" in rows or "prefill" in rows:
        stage = whole_stage(card)
        if "decode" in rows:
            yield from decode_rows(card, stage, "default")
        if "prefill" in rows:
            yield from prefill_rows(card, stage)
        del stage
        card.free()
    for name, triton in (("packed", True), ("plain-packed", False)):
        if name in rows:
            yield from packed_rows(card, triton)
    if "plain" in rows:
        with patch.object(paged_forward, "has_triton", lambda: False):
            yield from layer_rows(card, "without Triton")
            yield from decode_rows(card, whole_stage(card), "without Triton")
        card.free()
    for name in ("reference", "compiled"):
        if name in rows:
            yield from reference_rows(name == "compiled")
            card.free()


def packed_rows(card: Card, has_triton: bool) -> Iterator[Figure]:
    for kind in Quantisation:
        with nullcontext() if has_triton else patch.object(paged_forward, "has_triton", lambda: False):
            stage = whole_stage(card, kind)
            label = kind.value if has_triton else f"{kind.value} without Triton"
            yield Figure(f"Qwen3-8B weights, {label}", stage.weight_bytes / 1e9, "GB")
            yield from decode_rows(card, stage, label)
            if has_triton:
                yield from prefill_rows(card, stage, label)
        del stage
        card.free()


def whole_stage(card: Card, quantisation: Quantisation | None = None) -> Stage:
    begin = time.perf_counter()
    cut = random_cut(architecture_of(QWEN3_8B), 0, 36, DTYPE, card.device, quantisation)
    loaded = time.perf_counter()
    stage = Stage(cut, 12 * 2**30, DTYPE, card.device)
    print(f"loaded in {loaded - begin:.1f} s, prepared in {time.perf_counter() - loaded:.1f} s", file=sys.stderr)
    return stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("client.runtime").setLevel(logging.INFO)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # as the worker
    card = Card()
    name = torch.cuda.get_device_name()
    print(f"{name}; {describe_machine()}")
    print(f"read {card.read_rate / 1e12:.2f} TB/s, bf16 matrix product {card.matrix_rate / 1e12:.0f} TFLOP/s\n")
    print("| measure | value | limit | share |\n|---|---|---|---|", flush=True)
    figures = []
    for figure in measure(card, arguments.rows):
        figures.append(figure)
        limit = f"{figure.limit:,.0f} {figure.unit}" if figure.limit and figure.unit else ""
        share = figure.value / figure.limit if figure.limit else None
        if figure.unit == "us" and share:
            share = 1 / share
        value = f"{figure.value:,.1f} {figure.unit}" if figure.unit else f"{figure.value:.2f}"
        print(f"| {figure.what} | {value} | {limit} | {'' if share is None else f'{share:.2f}'} |", flush=True)
        if arguments.out:
            facts = {"device": name, "machine": describe_machine(), "read_rate": card.read_rate,
                     "matrix_rate": card.matrix_rate, "figures": [asdict(f) for f in figures]}  # fmt: skip
            arguments.out.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
