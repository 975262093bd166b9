"""That the fit finds what was put in, and keeps to what is possible."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scheduling.calibrate import SHAPES
from benchmarks.scheduling.fitting import (
    CHUNKS,
    PERFECT,
    Fit,
    Kind,
    Point,
    Series,
    Sheet,
    Step,
    calibration_of,
    fit,
    fit_all,
    non_negative,
    sim_model,
)
from coordinator.simulate.hardware import CLASSES, Calibration, true_speed
from coordinator.simulate.models import MODELS

SHEET = Sheet(CLASSES["h100-80g"], {name: sim_model(name, config, 2) for name, config in SHAPES.items()})
STEPS: tuple[tuple[Kind, int], ...] = (
    *((Kind.DECODE, size) for size in (1, 4, 16, 64)),
    *((Kind.PREFILL, size) for size in CHUNKS),
    (Kind.HEAD, 1),
)
TODAY = calibration_of(0.55, 0.35, 400e-6, 250e-6)
BEST = calibration_of(0.85, 0.6, 12e-6, 20e-6)


def points(calibration: Calibration, series: Series = Series.RUNTIME) -> list[Point]:
    steps: list[Step] = [(name, *step) for name in SHAPES for step in STEPS]
    return [Point(*step, series, SHEET.predict_s(step, calibration)) for step in steps]


def constants(found: Fit) -> list[float]:
    return list(found.constants.values())


@pytest.mark.parametrize("known", [TODAY, BEST, calibration_of(0.9, 0.05, 0.0, 0.0), Calibration(context_tokens=129)])
def test_constants_come_back_from_times_made_of_them(known: Calibration) -> None:
    found = fit(points(known), SHEET)
    assert constants(found) == pytest.approx(constants(Fit(512, known, {})), rel=1e-6, abs=1e-12)
    assert found.mean_error < 1e-6


def test_times_that_are_a_little_off_give_constants_that_are_a_little_off() -> None:
    rng = np.random.default_rng(0)
    noisy = [Point(*p.step, p.series, p.measured_s * float(rng.uniform(0.98, 1.02))) for p in points(TODAY)]
    found = fit(noisy, SHEET)
    assert constants(found) == pytest.approx(constants(Fit(512, TODAY, {})), rel=0.2)
    assert 0.0 < found.mean_error <= abs(found.worst_error) < 0.05


def test_the_mean_and_the_largest_error_are_those_of_the_fitted_points() -> None:
    steps: list[Step] = [("llama3-8b", Kind.DECODE, size) for size in (1, 4, 16)]
    found = Fit(512, TODAY, dict(zip(steps, (0.1, -0.3, 0.2), strict=True)))
    assert found.mean_error == pytest.approx(0.2)
    assert found.worst_error == -0.3


def test_nothing_is_faster_than_its_data_sheet() -> None:
    fast = [Point(*p.step, p.series, p.measured_s / 100) for p in points(BEST)]
    found = fit(fast, SHEET)
    assert found.calibration.bandwidth_share == 1.0
    assert found.calibration.flops_share == 1.0
    assert min(constants(found)) >= 0.0


def test_more_rows_than_the_line_for_experts_is_meant_for_are_not_fitted() -> None:
    left_out = [point for point in points(BEST) if not SHEET.is_fitted(point)]
    assert [point.step for point in left_out] == [("qwen3-30b-a3b", Kind.DECODE, 64)]
    spoilt = [Point(*p.step, p.series, p.measured_s * (1 if SHEET.is_fitted(p) else 50)) for p in points(BEST)]
    assert constants(fit(spoilt, SHEET)) == pytest.approx(constants(fit(points(BEST), SHEET)))


def test_every_fit_is_of_its_own_times() -> None:
    slow, large = calibration_of(0.55, 0.35, 900e-6, 250e-6), calibration_of(0.55, 0.7, 400e-6, 250e-6)
    mixed = [
        *(point for point in points(TODAY) if not SHEET.is_mixture(point.shape) and point.num_rows != CHUNKS[1]),
        *(point for point in points(large) if point.num_rows == CHUNKS[1]),
        *(point for point in points(slow) if SHEET.is_mixture(point.shape) and point.num_rows != CHUNKS[1]),
    ]
    fits = fit_all([*mixed, *points(BEST, Series.PRODUCTS)], SHEET)
    assert set(fits) == {"runtime", "runtime, dense only", "runtime, chunks of 2,048"}
    dense = fits["runtime, dense only"]
    assert constants(dense) == pytest.approx([0.55, 0.35, 400e-6, 250e-6])
    assert dense.mean_error < 1e-6
    assert fits["runtime"].calibration.layer_overhead_s > 1.1 * 400e-6
    assert fits["runtime, chunks of 2,048"].calibration.flops_share == pytest.approx(0.7, rel=0.1)


def test_without_times_of_larger_chunks_there_is_no_fit_of_them() -> None:
    some = [point for point in points(TODAY) if point.num_rows != CHUNKS[1]]
    assert set(fit_all(some, SHEET)) == {"runtime", "runtime, dense only"}
    assert fit_all(points(BEST, Series.PRODUCTS), SHEET) == {}


def test_a_fit_concerns_the_runtimes_steps_and_its_own_chunks() -> None:
    found = fit(points(TODAY), SHEET, CHUNKS[1])
    every = [*points(TODAY), *points(BEST, Series.PRODUCTS)]
    concerned = [point for point in every if found.concerns(point)]
    assert {point.series for point in concerned} == {Series.RUNTIME}
    assert {point.num_rows for point in concerned if point.kind is Kind.PREFILL} == {CHUNKS[1]}
    assert set(found.errors) == {point.step for point in concerned if SHEET.is_fitted(point)}


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_chunk_of_any_size_reads_all_weights_once(name: str) -> None:
    reading, reckoning = calibration_of(1e-6, 1.0, 0.0, 0.0), calibration_of(1.0, 1e-6, 0.0, 0.0)
    small, large = ((name, Kind.PREFILL, size) for size in CHUNKS)
    assert SHEET.predict_s(large, reading) == pytest.approx(SHEET.predict_s(small, reading))
    assert SHEET.predict_s(large, reckoning) == pytest.approx(4 * SHEET.predict_s(small, reckoning))
    speed = true_speed(SHEET.device, SHEET.models[name], PERFECT)
    assert SHEET.predict_s(small, PERFECT) == pytest.approx(CHUNKS[0] * speed.prefill_s)


def test_an_unknown_that_would_be_negative_is_zero() -> None:
    matrix = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_negative(matrix, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert non_negative(matrix, np.array([1.0, 2.0, 3.0])) == pytest.approx([1.0, 1.0])
    assert non_negative(matrix, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "qwen3-32b", "qwen3-30b-a3b"])
def test_a_configuration_becomes_the_simulators_model_of_that_name(name: str) -> None:
    ours, theirs = SHEET.models[name], MODELS.get(name) or MODELS[f"{name}-4bit"]
    for facts in ("layer_numels", "active_numels", "kv_numels", "head_numel", "hidden_size", "windows"):
        assert getattr(ours.facts, facts) == getattr(theirs.facts, facts)
    assert ours.row_numels == theirs.row_numels


def test_float32_reads_twice_the_bytes() -> None:
    name = "llama3-8b"
    wide = Sheet(SHEET.device, {name: sim_model(name, SHAPES[name], 4)})
    reading = calibration_of(1.0, 1e9, 0.0, 0.0)
    for step in ((name, Kind.DECODE, 16), (name, Kind.HEAD, 1)):
        assert wide.predict_s(step, reading) == pytest.approx(2 * SHEET.predict_s(step, reading))
