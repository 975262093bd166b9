"""From measured times of layers to the simulator's constants of hardware (`Calibration`), by least squares.

`true_speed` of coordinator/simulate/hardware.py is linear in 1 / bandwidth share, 1 / FLOP/s share and the overheads:
those are found that make its relative errors smallest. Times in seconds, shares of the data sheet's figures.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from client.runtime.benchmark import CONTEXT_TOKENS
from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS, Speed
from coordinator.scheduler.state import ITEM_BYTES
from coordinator.simulate.hardware import VARIANT, Calibration, DeviceClass, true_speed
from coordinator.simulate.models import Experts, Layer, Shape, SimModel, make_model

Config = Mapping[str, Any]
"""A config.json."""

CHUNKS = (PREFILL_CHUNK_TOKENS, 2048)
"""Rows of a prompt that are computed at once: the simulator's, and more."""
MAX_EXPERT_ROWS = 16
"""Up to so many rows the simulator's line for a mixture of experts is meant (`SimModel.row_numels`)."""


class Kind(StrEnum):
    """What is timed: a layer's decode step or its share of a prompt's chunk, or the head for one token."""

    DECODE = "decode"
    PREFILL = "prefill"
    HEAD = "head"


class Series(StrEnum):
    """How it is timed: benchmarks/scheduling/calibrate.py says what each is."""

    RUNTIME = "runtime"
    PRODUCTS = "products"


Step = tuple[str, Kind, int]
"""Shape, what is timed, and its number of rows."""


@dataclass(frozen=True)
class Point:
    """How long one layer, or the head, takes for one step of `num_rows` rows."""

    shape: str
    kind: Kind
    num_rows: int
    series: Series
    measured_s: float

    @property
    def step(self) -> Step:
        return self.shape, self.kind, self.num_rows


@dataclass(frozen=True)
class Sheet:
    """The data sheet's device, and the models as the simulator has them."""

    device: DeviceClass
    models: Mapping[str, SimModel]

    def predict_s(self, step: Step, calibration: Calibration) -> float:
        """What `true_speed` says of a step. It knows one size of chunk: any other reads all weights once, too."""
        name, kind, num_rows = step
        speed = self._speed(name, calibration)
        if kind is Kind.HEAD:
            return speed.head_s
        if kind is Kind.DECODE:
            return speed.step_time_s(1.0, num_rows, last=False)
        reading_s = PREFILL_CHUNK_TOKENS * self._speed(name, replace(calibration, flops_share=math.inf)).prefill_s
        reckoning_s = num_rows * self._speed(name, replace(calibration, bandwidth_share=math.inf)).prefill_s
        return max(reading_s, reckoning_s)

    def _speed(self, name: str, calibration: Calibration) -> Speed:
        return true_speed(self.device, self.models[name], calibration)

    def is_mixture(self, name: str) -> bool:
        return any(self.models[name].row_numels)

    def is_fitted(self, point: Point) -> bool:
        return not (point.kind is Kind.DECODE and point.num_rows > MAX_EXPERT_ROWS and self.is_mixture(point.shape))


def sim_model(name: str, config: Config, item_bytes: int) -> SimModel:
    """A configuration as the simulator sees it, with `item_bytes` per weight and per element of the KV cache."""
    heads, kv_heads, head_dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    context = config["max_position_embeddings"]
    shape = Shape(config["hidden_size"], heads, kv_heads, head_dim, config["vocab_size"], context)
    kv_numel = shape.kv_numel * item_bytes // ITEM_BYTES[VARIANT]  # the simulator's elements are of its one variant
    if "num_experts" in config:
        expert = shape.mlp_numel(config["moe_intermediate_size"])
        experts = Experts(config["num_experts"], config["num_experts_per_tok"], expert)
        layer = Layer(shape.attention_numel, kv_numel, experts)
    else:
        layer = Layer(shape.dense(config["intermediate_size"]).always_numel, kv_numel)
    return make_model(name, shape, (layer,) * config["num_hidden_layers"], 8.0 * item_bytes)


def calibration_of(bandwidth_share: float, flops_share: float, layer_s: float, head_s: float) -> Calibration:
    return Calibration(bandwidth_share, flops_share, layer_s, head_s, context_tokens=CONTEXT_TOKENS + 1)


PERFECT = calibration_of(1.0, 1.0, 0.0, 0.0)
_TERMS = tuple(
    calibration_of(*values)
    for values in (
        (1.0, math.inf, 0.0, 0.0),
        (math.inf, 1.0, 0.0, 0.0),
        (math.inf, math.inf, 1.0, 0.0),
        (math.inf, math.inf, 0.0, 1.0),
    )
)
"""`true_speed` is linear in 1 / bandwidth share, 1 / FLOP/s share and the overheads: these read the factors off it."""
_LEAST = np.array([1.0, 1.0, 0.0, 0.0])
"""No device is faster than its data sheet, and no overhead negative."""
_MAX_ROUNDS = 20


@dataclass(frozen=True)
class Fit:
    """What a calibration fitted to some points says of them, prompts in chunks of `chunk_tokens`.

    `errors` are relative, of the points that it was found from."""

    chunk_tokens: int
    calibration: Calibration
    errors: Mapping[Step, float]

    @property
    def constants(self) -> dict[str, float]:
        names = ("bandwidth_share", "flops_share", "layer_overhead_s", "head_overhead_s")
        return {name: getattr(self.calibration, name) for name in names}

    @property
    def mean_error(self) -> float:
        return statistics.mean(abs(error) for error in self.errors.values())

    @property
    def worst_error(self) -> float:
        return max(self.errors.values(), key=abs)

    def concerns(self, point: Point) -> bool:
        return is_timed(point, self.chunk_tokens)


def is_timed(point: Point, chunk_tokens: int) -> bool:
    """Whether this is of the runtime's times, of a chunk of that size if of any."""
    return point.series is Series.RUNTIME and (point.kind is not Kind.PREFILL or point.num_rows == chunk_tokens)


def fit(points: Sequence[Point], sheet: Sheet, chunk_tokens: int = CHUNKS[0]) -> Fit:
    """Least squares of relative errors, over those of the points that are of this size of chunk.

    Which of its two terms bounds a prefill depends on the answer: repeated until that stays as it was."""
    fitted = [point for point in points if is_timed(point, chunk_tokens) and sheet.is_fitted(point)]
    factors = np.array([[sheet.predict_s(point.step, term) for term in _TERMS] for point in fitted])
    factors /= np.array([[point.measured_s] for point in fitted])
    is_prefill = np.array([point.kind is Kind.PREFILL for point in fitted])
    usual = Calibration()
    found = np.array([1 / usual.bandwidth_share, 1 / usual.flops_share, 0.0, 0.0])
    for _ in range(_MAX_ROUNDS):
        bound = _bounding(factors, found, is_prefill)
        previous, found = found, _LEAST + non_negative(bound, 1.0 - bound @ _LEAST)
        if np.allclose(previous, found):
            break
    calibration = calibration_of(float(1 / found[0]), float(1 / found[1]), float(found[2]), float(found[3]))
    errors = {point.step: sheet.predict_s(point.step, calibration) / point.measured_s - 1 for point in fitted}
    return Fit(chunk_tokens, calibration, errors)


def _bounding(
    factors: NDArray[np.float64], found: NDArray[np.float64], is_prefill: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A prefill takes the longer of reading and reckoning, not their sum."""
    by_bytes = factors[:, 0] * found[0] > factors[:, 1] * found[1]
    kept = factors.copy()
    kept[is_prefill & by_bytes, 1] = 0.0
    kept[is_prefill & ~by_bytes, 0] = 0.0
    return kept


def non_negative(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with no negative unknown, by trying which are zero: there are at most four."""
    num_unknowns = matrix.shape[1]
    best, best_error = np.zeros(num_unknowns), float(target @ target)
    for size in range(1, num_unknowns + 1):
        for chosen in itertools.combinations(range(num_unknowns), size):
            answer = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            rest = target - matrix[:, chosen] @ answer
            if (answer >= 0).all() and rest @ rest < best_error:
                best, best_error = np.zeros(num_unknowns), float(rest @ rest)
                best[list(chosen)] = answer
    return best


def fit_all(points: Sequence[Point], sheet: Sheet) -> dict[str, Fit]:
    """Of the runtime's times: over all shapes, over the dense ones, and over all with larger chunks of prompts."""
    runtime = [point for point in points if point.series is Series.RUNTIME]
    dense = [point for point in runtime if not sheet.is_mixture(point.shape)]
    fits = {"runtime": fit(runtime, sheet)} if runtime else {}
    if 0 < len(dense) < len(runtime):
        fits["runtime, dense only"] = fit(dense, sheet)
    for num_tokens in CHUNKS[1:]:
        if any(point.kind is Kind.PREFILL and point.num_rows == num_tokens for point in runtime):
            fits[f"runtime, chunks of {num_tokens:,}"] = fit(runtime, sheet, num_tokens)
    return fits
