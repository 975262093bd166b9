"""The simulator's constants of hardware, from times measured on a real device.

    python -m benchmarks.scheduling.calibrate [--device cuda] [--shapes llama3-8b ...] [--json times.json]

One layer and the head of real models' shapes, with random weights (bfloat16; float32 on a CPU), twice over:

- `runtime`: as a node measures itself when it joins (client/runtime/benchmark.py): whole steps, the host's part and
  waiting for the device included. Decode replays captured graphs on CUDA; prompts come in chunks of two sizes;
- `products`: the matrix products alone, one for each weight, recorded in a CUDA graph and replayed: what the hardware
  gives for these bytes and FLOPs.

From the runtime's times come shares of the data sheet and overheads, as `Calibration` has them, by least squares, with
every residual (benchmarks/scheduling/fitting.py). Progress goes to standard error, the page to standard output.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.scheduling.fitting import (
    CHUNKS,
    PERFECT,
    Config,
    Fit,
    Kind,
    Point,
    Series,
    Sheet,
    fit_all,
    sim_model,
)
from client.runtime.architecture import Architecture, read_architecture
from client.runtime.benchmark import LayerTimer, StepClock, head_s, random_cut
from client.runtime.cut import CutModel
from client.runtime.device import Device
from coordinator.simulate.hardware import CLASSES

BATCH_SIZES = (1, 4, 16, 64)
LIMIT_S = 150.0
"""No shape is begun later than this: one may take most of a minute where the runtime compiles."""
BURST_S = 0.05
"""Replays between two events; a time is the median of NUM_BURSTS of these."""
NUM_BURSTS = 7
STEPS_IN_GRAPH = 4
NUM_WARM_UPS = 3

_LLAMA_3 = {
    "model_type": "llama", "vocab_size": 128_256, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
_QWEN_3 = {
    "vocab_size": 151_936, "head_dim": 128, "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40_960, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, Config] = {
    "llama3-8b": {
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama3-70b": {
        **_LLAMA_3, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen3-32b": {
        **_QWEN_3, "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    },
    "qwen3-30b-a3b": {
        **_QWEN_3, "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip
"""Published in the models' config.json. The mixture comes last: should time be short, the others are done."""

CLASS_OF_CARD = {
    "NVIDIA H100 80GB HBM3": "h100-80g",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA GeForce RTX 5090": "rtx5090-32g",
    "NVIDIA GeForce RTX 4090": "rtx4090-24g",
    "NVIDIA GeForce RTX 3090": "rtx3090-24g",
    "NVIDIA GeForce RTX 3060": "rtx3060-12g",
}
"""By the driver's whole name: cards of almost the same name (PCIe, NVL, Ti) have other figures."""


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Bench:
    """What is measured on, and since when (seconds of `time.perf_counter`)."""

    device: Device
    begin_s: float = field(default_factory=time.perf_counter)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.is_cpu else torch.bfloat16

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.begin_s

    def clock(self) -> StepClock:
        """For what has no part on the host."""
        return StepClock(self.device, lambda: None) if self.device.is_cpu else GraphClock(self.device)

    def tensor(self, *shape: int) -> Tensor:
        """Random numbers from the host: a recording that failed leaves the device's generator unusable."""
        return torch.randn(*shape).to(self.device.torch_device, self.dtype)

    def say(self, what: str) -> None:
        """One line of progress."""
        print(f"{self.elapsed_s:6.1f} s  {what}", file=sys.stderr, flush=True)


class GraphClock(StepClock):
    """Times steps on the device alone: recorded once, replayed many times, between CUDA events."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, lambda: None)

    def median_s(self, step: Callable[[], object]) -> float:
        """Seconds of one step. Raises RuntimeError if it cannot be recorded."""
        graph = _recorded(step)
        _burst_s(graph, 1)
        num_replays = max(1, min(100, int(BURST_S / STEPS_IN_GRAPH / _burst_s(graph, 1))))
        return statistics.median(_burst_s(graph, num_replays) for _ in range(NUM_BURSTS))


def _recorded(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Several steps in one graph, as a stage has several layers in one step.

    Lazy initialisations must be over before, on another stream than the default one (PyTorch notes, CUDA graphs)."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(NUM_WARM_UPS):
            step()
    stream = torch.cuda.current_stream()
    stream.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(STEPS_IN_GRAPH):
                step()
    finally:
        torch.cuda.set_stream(stream)  # torch.cuda.graph leaves its own behind where ending the recording fails
    return graph


def _burst_s(graph: torch.cuda.CUDAGraph, num_replays: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(num_replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / num_replays / STEPS_IN_GRAPH


def products(bench: Bench, cut: CutModel, num_rows: int, num_chosen: int) -> Callable[[], None]:
    """A step that multiplies by every weight matrix of the cut; of stacked experts by those that rows would choose."""
    weights = [weight for weight in cut.model.parameters() if weight.ndim >= 2]
    pairs = [_operands(bench, weight, num_rows, num_chosen) for weight in weights]

    @torch.inference_mode()
    def step() -> None:
        for rows, weight in pairs:
            torch.matmul(rows, weight.mT)

    return step


def _operands(bench: Bench, weight: Tensor, num_rows: int, num_chosen: int) -> tuple[Tensor, Tensor]:
    if weight.ndim == 2:
        return bench.tensor(num_rows, weight.shape[1]), weight
    num_hit = experts_hit(len(weight), num_chosen, num_rows)
    return bench.tensor(num_hit, math.ceil(num_rows * num_chosen / num_hit), weight.shape[2]), weight[:num_hit]


def experts_hit(num_experts: int, num_chosen: int, num_rows: int) -> int:
    """Different experts that a step reads on average, with independent choices."""
    return round(num_experts * (1 - (1 - num_chosen / num_experts) ** num_rows))


def measure_shape(name: str, config: Config, bench: Bench) -> Iterator[Point]:
    """Points as they come, so that a failure loses only what was to follow."""
    architecture = read_architecture(json.dumps(config))
    yield from _runtime_points(name, architecture, bench)
    bench.device.release_cached()
    yield from _product_points(name, architecture, bench, config.get("num_experts_per_tok", 0))


def _runtime_points(name: str, architecture: Architecture, bench: Bench) -> Iterator[Point]:
    """`measure_layers` step by step: so both sizes of chunk are computed by the same, once compiled, layer."""
    clock = StepClock(bench.device, lambda: None)
    middle, last = architecture.num_layers // 2, architecture.num_layers
    cut = random_cut(architecture, middle, middle + 1, bench.dtype, bench.device)
    layer = LayerTimer(cut, bench.dtype, bench.device, clock, [*BATCH_SIZES, 1])
    for size in BATCH_SIZES:
        yield Point(name, Kind.DECODE, size, Series.RUNTIME, layer.decode_s(size))
    for num_tokens in CHUNKS:
        yield Point(name, Kind.PREFILL, num_tokens, Series.RUNTIME, layer.prefill_s(num_tokens))
    del layer, cut  # their memory is needed for the head
    bench.device.release_cached()
    head = random_cut(architecture, last, last, bench.dtype, bench.device)
    yield Point(name, Kind.HEAD, 1, Series.RUNTIME, head_s(head, bench.dtype, bench.device, clock))


def _product_points(name: str, architecture: Architecture, bench: Bench, num_chosen: int) -> Iterator[Point]:
    clock = bench.clock()
    middle, last = architecture.num_layers // 2, architecture.num_layers
    cut = random_cut(architecture, middle, middle + 1, bench.dtype, bench.device)
    for kind, sizes in ((Kind.DECODE, BATCH_SIZES), (Kind.PREFILL, CHUNKS)):
        for size in sizes:
            measured_s = clock.median_s(products(bench, cut, size, num_chosen))
            yield Point(name, kind, size, Series.PRODUCTS, measured_s)
    cut = random_cut(architecture, last, last, bench.dtype, bench.device)
    yield Point(name, Kind.HEAD, 1, Series.PRODUCTS, clock.median_s(products(bench, cut, 1, 0)))


def measure_ceilings(bench: Bench) -> dict[str, float]:
    """Copying within the device's memory, bytes read and written; and one large square matrix product."""
    num_bytes, side = (2**26, 1024) if bench.device.is_cpu else (2**31, 8192)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=bench.device.torch_device)
    target = torch.zeros_like(source)
    copy_s = bench.clock().median_s(lambda: target.copy_(source))
    left, right, out = (bench.tensor(side, side) for _ in range(3))
    product_s = bench.clock().median_s(lambda: torch.matmul(left, right, out=out))
    return {"copy_bytes_per_s": 2 * num_bytes / copy_s, "product_flops": 2 * side**3 / product_s}


def measure_shapes(names: Iterable[str], bench: Bench) -> tuple[list[Point], dict[str, str]]:
    """All points, and why shapes are missing or incomplete, by name."""
    points: list[Point] = []
    failures: dict[str, str] = {}
    for name in names:
        if bench.elapsed_s > LIMIT_S:
            failures[name] = "not begun: the time was up"
            bench.say(f"{name}: {failures[name]}")
            continue
        bench.say(f"{name}: begun")
        try:
            for point in measure_shape(name, SHAPES[name], bench):
                points.append(point)
                bench.say(f"{name}: {point.series}, {_step_name(point)}: {1e6 * point.measured_s:.1f} us")
        except Exception as error:  # noqa: BLE001 - whatever torch or a model raises, the others are measured
            failures[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        gc.collect()
        bench.device.release_cached()
        bench.say(f"{name}: {failures.get(name, 'done')}")
    return points, failures


def _step_name(point: Point) -> str:
    return f"{point.kind} of {point.num_rows}"


# ---------------------------------------------------------------- reporting

SERIES_NAMES = {Series.RUNTIME: "our runtime", Series.PRODUCTS: "matrix products alone"}
SERIES_TEXT = (
    "Our runtime: one layer from the model's middle, and the head, as a node measures itself when it joins: whole steps"
    " as the host sees them, decode replayed from captured graphs where the device is CUDA's, prompts in chunks. Matrix"
    " products alone: one product for each weight matrix, without norms, attention or sampling, on CUDA recorded"
    " in a graph; of stacked experts those that so many rows would choose on average."
)


@dataclass(frozen=True)
class Run:
    """All that was found, and on what."""

    machine: str
    sheet: Sheet
    points: Sequence[Point]
    fits: Mapping[str, Fit]
    ceilings: Mapping[str, float]
    failures: Mapping[str, str]

    def as_json(self) -> str:
        fits = {
            name: {**found.constants, "mean_error": found.mean_error, "worst_error": found.worst_error}
            for name, found in self.fits.items()
        }
        points = [{**asdict(point), "data_sheet_s": self.sheet.predict_s(point.step, PERFECT)} for point in self.points]
        whole: dict[str, object] = {
            "machine": self.machine,
            "class": asdict(self.sheet.device),
            "fits": fits,
            "ceilings": self.ceilings,
        }
        whole |= {"points": points, "residuals": self.residuals(), "failures": self.failures}
        return json.dumps(whole, indent=1)

    def residuals(self) -> list[dict[str, object]]:
        """Of every point that a fit concerns; `is_fitted` is false for those that it was not found from."""
        return [
            {
                "fit": name,
                **asdict(point),
                "predicted_s": self.sheet.predict_s(point.step, found.calibration),
                "is_fitted": point.step in found.errors,
            }
            for name, found in self.fits.items()
            for point in self.points
            if found.concerns(point)
        ]


def report(run: Run) -> str:
    """The page, in Markdown."""
    parts = [
        f"# Hardware constants measured on {run.sheet.device.name}",
        f"{run.machine}.\nCommand: `python -m benchmarks.scheduling.calibrate`. Random weights; decode with"
        f" {PERFECT.context_tokens} tokens of context.",
        SERIES_TEXT,
        _ceilings_line(run),
        "## Constants of `Calibration`, from the runtime's times\n\n" + table(_fit_rows(run)),
        f"Prompts are in chunks of {CHUNKS[0]:,} rows where nothing else is said.",
        "## Share of the data sheet: its time for the same bytes and operations, over the measured\n\n"
        + table(_share_rows(run)),
        "## Residuals, microseconds\n\n" + table(_residual_rows(run)),
        "`true_speed` predicts. (not fitted): more rows than its line for a mixture of experts is meant for, or a"
        " mixture where only dense shapes count.",
        *(f"Not complete: {name}: {reason}." for name, reason in run.failures.items()),
    ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rest])


def _ceilings_line(run: Run) -> str:
    copied, reckoned = run.ceilings["copy_bytes_per_s"], run.ceilings["product_flops"]
    device = run.sheet.device
    return (
        f"Copying in the device's memory: {copied / 1e9:.0f} GB/s read and written"
        f" ({100 * copied / device.bytes_per_s:.0f} % of the data sheet's {device.bytes_per_s / 1e9:.0f}). A large"
        f" matrix product: {reckoned / 1e12:.3g} TFLOP/s ({100 * reckoned / device.flops:.0f} % of"
        f" {device.flops / 1e12:.3g})."
    )


def _fit_rows(run: Run) -> list[list[str]]:
    head = ["fit", "bandwidth_share", "flops_share", "layer_overhead_s", "head_overhead_s", "mean error", "largest"]
    rows = [head]
    for name, found in run.fits.items():
        bandwidth, flops, layer_s, head_s = found.constants.values()
        cells = [f"{bandwidth:.3f}", f"{flops:.3f}", f"{layer_s:.3g}", f"{head_s:.3g}"]
        rows.append([name, *cells, f"{100 * found.mean_error:.1f} %", f"{100 * found.worst_error:+.1f} %"])
    return rows


def _share_rows(run: Run) -> list[list[str]]:
    rows = [["shape", "step", "data sheet, µs", *SERIES_NAMES.values()]]
    times = {(point.step, point.series): point.measured_s for point in run.points}
    for point in {point.step: point for point in run.points}.values():
        least_s = run.sheet.predict_s(point.step, PERFECT)
        found = [times.get((point.step, series)) for series in SERIES_NAMES]
        shares = ["" if time_s is None else f"{100 * least_s / time_s:.0f} %" for time_s in found]
        rows.append([point.shape, _step_name(point), f"{1e6 * least_s:.1f}", *shares])
    return rows


def _residual_rows(run: Run) -> list[list[str]]:
    rows = [["shape", "step", "measured", *(f"{name}: {what}" for name in run.fits for what in ("predicted", "error"))]]
    for point in run.points:
        if point.series is Series.RUNTIME:
            cells = [cell for found in run.fits.values() for cell in _residual_cells(run, found, point)]
            rows.append([point.shape, _step_name(point), f"{1e6 * point.measured_s:.1f}", *cells])
    return rows


def _residual_cells(run: Run, found: Fit, point: Point) -> list[str]:
    if not found.concerns(point):
        return ["", ""]
    predicted_s = run.sheet.predict_s(point.step, found.calibration)
    left_out = "" if point.step in found.errors else " (not fitted)"
    return [f"{1e6 * predicted_s:.1f}", f"{100 * (predicted_s / point.measured_s - 1):+.0f} %{left_out}"]


def class_of(device: Device, wanted: str | None) -> str:
    """Which data sheet counts. Exits with a sentence for a card that is not known."""
    found = wanted or ("cpu-32g" if device.is_cpu else CLASS_OF_CARD.get(device.name))
    if found is None:
        raise SystemExit(f"no data sheet is known for {device.name!r}: name one with --class, of {', '.join(CLASSES)}")
    return found


def run_all(device: Device, class_name: str, names: Sequence[str]) -> Run:
    """Measure and fit. Exits if nothing could be measured."""
    bench = Bench(device)
    ceilings = measure_ceilings(bench)
    bench.say("ceilings: done")
    points, failures = measure_shapes(names, bench)
    if not points:
        raise SystemExit(f"nothing was measured: {failures}")
    models = {name: sim_model(name, SHAPES[name], bench.dtype.itemsize) for name in {p.shape for p in points}}
    sheet = Sheet(CLASSES[class_name], models)
    machine = f"{device.name}, {bench.dtype}; {describe_machine()}"
    return Run(machine, sheet, points, fit_all(points, sheet), ceilings, failures)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    parser.add_argument("--class", dest="class_name", choices=CLASSES, help="the data sheet, for cards not known here")
    parser.add_argument("--json", type=Path, help="write every time and every fit to this file")
    arguments = parser.parse_args(argv)
    transformers.logging.disable_progress_bar()
    device = Device.open(arguments.device)
    run = run_all(device, class_of(device, arguments.class_name), arguments.shapes)
    if arguments.json is not None:
        arguments.json.write_text(run.as_json(), encoding="utf-8")
    print(report(run))
    return 1 if run.failures else 0


if __name__ == "__main__":
    logging.basicConfig(format="          %(message)s")
    logging.getLogger("client.runtime").setLevel(logging.INFO)  # it says what it compiled, and how fast that is
    sys.exit(main())
