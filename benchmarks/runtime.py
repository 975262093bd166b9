"""The layer runtime on one GPU, in-process as the worker runs it: `python -m benchmarks.runtime [--rows ...]`.

Random weights of real shapes. Prints a markdown table, and with `--out` writes the figures as JSON. Figures are set
against what the card does in the same run: read bandwidth and the rate of a large matrix product. Rows:

  decode     Qwen3-8B in one stage: tokens/s of 1, 16 and 64 sessions with prompts of 128 tokens
  prefill    the same, prompts of 4,096 tokens, by the rows that a step takes at most
  layer      a Llama-8B layer at context 2,048 with 1, 8 and 64 sessions, as a share of the read roofline
  reference  transformers' `generate` on the decode and prefill rows; `compiled`: with a static cache, compiled
  packed     decode and prefill with weights in 8 and 4 bits, with Triton; `plain-packed`: decode without
  plain      decode and layer without Triton and torch.compile, as on a machine without a C compiler
  experts    four layers of Qwen3-30B-A3B in 16, 8 and 4 bits
  hybrid     eight layers of Qwen3-Next-80B-A3B, six of them recurrent, captured and step by step
  continuous transformers' continuous batching on the decode rows, with its energy

Energy is the whole card's (NVML's counter) while sessions decode.
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

import pynvml
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.machine import describe_machine
from benchmarks.synthetic import QWEN3_8B
from client.ipc import EndSession, Sampled, SessionFailed, StartSession, WorkerMessage
from client.runtime import paged_forward
from client.runtime.architecture import Architecture, read_architecture
from client.runtime.batch import lay_out
from client.runtime.benchmark import random_cut
from client.runtime.decode_graphs import DecodeGraphs
from client.runtime.device import Device
from client.runtime.engine import Engine
from client.runtime.stage import Stage
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.values import Quantisation, Sampling, SessionId, StopRule

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
QWEN3_NEXT = {
    "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "max_position_embeddings": 262144,
}  # fmt: skip
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True, "max_position_embeddings": 40960,
}  # fmt: skip
"""Published in the models' config.json (meta-llama/Llama-3.1-8B but for its rotary scaling,
Qwen/Qwen3-Next-80B-A3B-Instruct, Qwen/Qwen3-30B-A3B)."""

ROWS = (
    "decode", "prefill", "layer", "packed", "plain-packed", "reference", "compiled", "plain", "experts", "hybrid",
    "continuous",
)  # fmt: skip
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
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def energy_j(self) -> float:
        """Joules that the card has used since its driver was loaded."""
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

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


@dataclass(frozen=True)
class Decoded:
    """What a batch of sessions did."""

    tokens_per_s: float
    joules_per_1000: float


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

    def __init__(self, stage: Stage, max_batch_tokens: int, sampling: Sampling = Sampling()) -> None:
        self.sink = Sink()
        self.sampling = sampling
        self.engine = Engine(stage, self.sink, max_batch_tokens)
        self._open: list[str] = []

    def start(self, num_prompt: int, num_new: int) -> None:
        """Open a session and hand it a random prompt."""
        session_id = f"{next(self._numbers):032x}"
        total = num_prompt + num_new
        tokens = torch.randint(3, 150_000, (num_prompt,), dtype=torch.int32).tolist()
        start = StartSession(
            session_id, 1, 0, 1, num_prompt, total, None, 0, self.sampling, StopRule(total), tuple(tokens)
        )
        self.engine.start(start)
        self._open.append(session_id)
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

    def decode(self, num_sessions: int, energy_j: Callable[[], float] = lambda: 0.0, num_steps: int = 300) -> Decoded:
        """All sessions together, once their prompts are done. `energy_j`: joules used so far."""
        for _ in range(num_sessions):
            self.start(PROMPT_TOKENS, num_steps + 64)
        self.step_until(num_sessions)
        for _ in range(12 + PROMPT_TOKENS * num_sessions // 512):
            self.engine.step()
        before, before_j, begin = self.sink.num_sampled, energy_j(), time.perf_counter()
        for _ in range(num_steps):
            self.engine.step()
        seconds, used_j = time.perf_counter() - begin, energy_j() - before_j
        num_sampled = self.sink.num_sampled - before
        self.end()
        return Decoded(num_sampled / seconds, 1000 * used_j / num_sampled)

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
        decoded = max(
            (served.decode(num_sessions, card.energy_j) for _ in range(2)), key=lambda found: found.tokens_per_s
        )
        context = PROMPT_TOKENS + 162  # in the middle of the steps that are timed
        kv_bytes = num_sessions * context * sum(shape.num_elements for shape in stage.cache.shapes) * 2
        limit = num_sessions * card.read_rate / (read_bytes(stage) + kv_bytes)
        what = f"Qwen3-8B decode, {num_sessions} sessions, {label}"
        yield Figure(what, decoded.tokens_per_s, "tokens/s", limit)
        yield Figure(what, decoded.joules_per_1000, "J per 1,000 tokens")


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
    stage = middle_stage(card, LLAMA_8B, 14, 14 + NUM_LAYERS_TIMED)
    for num_sessions in (1, 8, 16, 64):
        seconds = middle_step_s(stage, num_sessions)
        kv_bytes = num_sessions * LAYER_CONTEXT * sum(shape.num_elements for shape in stage.cache.shapes) * 2
        ideal = (stage.weight_bytes + kv_bytes) / card.read_rate
        what = f"Llama-8B layer, context {LAYER_CONTEXT}, batch {num_sessions}, {label}"
        yield Figure(what + ", share of the read roofline", ideal / seconds, "", 1.0)
        yield Figure(what, seconds / NUM_LAYERS_TIMED * 1e6, "us", ideal / NUM_LAYERS_TIMED * 1e6)


def experts_rows(card: Card) -> Iterator[Figure]:
    """A mixture of experts; one session reads eight of 128 experts."""
    for kind in (None, *Quantisation):
        stage = middle_stage(card, QWEN3_30B_A3B, 20, 20 + NUM_LAYERS_TIMED, kind)
        label = kind.value if kind else "bf16"
        yield Figure(f"Qwen3-30B-A3B layer, {label}", stage.weight_bytes / NUM_LAYERS_TIMED / 1e6, "MB")
        for num_sessions in (1, 8, 16, 64):
            what = f"Qwen3-30B-A3B layer, {label}, context {LAYER_CONTEXT}, batch {num_sessions}"
            yield Figure(what, middle_step_s(stage, num_sessions) / NUM_LAYERS_TIMED * 1e6, "us")
        del stage
        card.free()


def hybrid_rows(card: Card) -> Iterator[Figure]:
    """Mean over layers of both kinds: three recurrent ones and one with attention, twice."""
    stage = middle_stage(card, QWEN3_NEXT, 20, 28)
    for num_sessions in (1, 8, 16, 64):
        for label, changed in (
            ("captured", nullcontext()),
            ("step by step", patch.object(DecodeGraphs, "run", lambda *_: None)),
        ):
            with changed:
                seconds = middle_step_s(stage, num_sessions)
            what = f"Qwen3-Next-80B-A3B layer, context {LAYER_CONTEXT}, batch {num_sessions}, {label}"
            yield Figure(what, seconds / 8 * 1e6, "us")


def middle_stage(
    card: Card, shape: dict[str, Any], start: int, stop: int, quantisation: Quantisation | None = None
) -> Stage:
    """Layers [start, stop) with random keys and values."""
    cut = random_cut(architecture_of(shape), start, stop, DTYPE, card.device, quantisation)
    stage = Stage(cut, 8 * 2**30, DTYPE, card.device)
    for layer in stage.cache.layers.values():
        layer.keys.normal_()
        layer.values.normal_()
    return stage


def middle_step_s(stage: Stage, num_sessions: int) -> float:
    """Seconds of one decode step at LAYER_CONTEXT."""
    tables = [stage.cache.open(LAYER_CONTEXT) for _ in range(num_sessions)]
    for table in tables:
        table.advance(LAYER_CONTEXT - 1)
    layout = lay_out([(table, 1) for table in tables])
    hidden = torch.randn(num_sessions, stage.hidden_size, dtype=torch.float32).to(DTYPE)
    seconds = steady_s(lambda: stage.forward(layout, hidden, []))
    for table in tables:
        stage.cache.close(table)
    return seconds


def continuous_rows(card: Card) -> Iterator[Figure]:
    """transformers' own: a long answer less a short one, so that prompts and set-up do not count."""
    config = architecture_of(QWEN3_8B).config
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa").eval()
    for num_sessions in (1, 16, 64):
        prompts = torch.randint(3, 150_000, (num_sessions, PROMPT_TOKENS)).tolist()
        found = [_batched(card, model, prompts, num_new) for num_new in (4, 4, 36)]
        seconds, energy_j = found[2][0] - found[1][0], found[2][1] - found[1][1]
        num_tokens = 32 * num_sessions
        what = f"transformers continuous batching: decode of {num_sessions}"
        yield Figure(what, num_tokens / seconds, "tokens/s")
        yield Figure(what, 1000 * energy_j / num_tokens, "J per 1,000 tokens")


def _batched(card: Card, model: Any, prompts: list[list[int]], num_new: int) -> tuple[float, float]:
    """Seconds and joules for answers of so many tokens."""
    settings = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    begin, energy_j = time.perf_counter(), card.energy_j()
    answers = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    if any(len(answer.generated_tokens) != num_new for answer in answers.values()):
        raise RuntimeError("transformers' continuous batching has stopped early")
    return time.perf_counter() - begin, card.energy_j() - energy_j


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
    return read_architecture(json.dumps({"model_type": "qwen3", **shape}))


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
    if "experts" in rows:
        yield from experts_rows(card)
    if "hybrid" in rows:
        yield from hybrid_rows(card)
        card.free()
    if "continuous" in rows:
        yield from continuous_rows(card)
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
