"""What layers cost in bytes and work, what a step takes, what fits on a device."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.cost import (
    MEMORY_FOR_ACTIVATIONS,
    MIN_KV_TOKENS,
    PREFILL_CHUNK_TOKENS,
    Speed,
    device_speed,
    memory_for,
    model_cost,
    place,
    prefill_s,
    response_s,
    speed_of,
    usable_bytes,
)
from coordinator.scheduler.state import IDLE, Device, Load
from protocol.quantisation import Packed
from protocol.values import BatchTime, LayerBenchmark, LayerRange, Variant
from tests.fakes import pool_facts as facts

MODEL = facts.model(100, context_length=100)
LAYER_BYTES = 4 * (1_000_000 + 10 * 100)
SPEED = Speed(step_s=1e-3, row_s=1e-4, prefill_s=1e-5, head_s=2e-3)

# ---------------------------------------------------------------- bytes and work


def test_weights_of_a_slice_are_those_of_its_layers_and_of_the_ends_that_it_has() -> None:
    cost = model_cost(MODEL, Variant.BFLOAT16)
    assert cost.weight_bytes(LayerRange(10, 20)) == 2 * 10_000_000
    assert cost.weight_bytes(LayerRange(0, 20)) == 2 * 20_100_000
    assert cost.weight_bytes(LayerRange(0, 100)) == 2 * 100_200_000


def test_quantised_weights_take_their_bits_and_rows_stay_wide() -> None:
    cost = model_cost(replace(MODEL, weight_bits=4.5, hidden_size=64), Variant.BFLOAT16)
    assert cost.weight_bytes(LayerRange(10, 11)) == 1_000_000 * 4.5 / 8
    assert cost.hidden_bytes == 128
    assert cost.kv_bytes(LayerRange(0, 1), 3) == 3 * 10 * 2


def test_a_dense_first_layer_is_more_work_and_a_mixture_counts_what_is_chosen() -> None:
    numels = (4_000_000, *(8_000_000,) * 9)
    active = (4_000_000, *(1_000_000,) * 9)
    cost = model_cost(replace(facts.model(10), layer_numels=numels, active_numels=active), Variant.FLOAT32)
    assert cost.work_of(LayerRange(0, 1)) == 4.0, "in layers from the middle"
    assert cost.work_of(LayerRange(1, 10)) == 9.0
    assert cost.weight_bytes(LayerRange(1, 2)) == 4 * 8_000_000, "memory holds all experts"


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    windows = (8, None) * 5
    cost = model_cost(replace(facts.model(10), windows=windows), Variant.FLOAT32)
    assert cost.kv_bytes(LayerRange(0, 2), 100) == 4 * 10 * (8 + 100)
    assert cost.kv_bytes(LayerRange(0, 2), 5) == 4 * 10 * (5 + 5)


def test_layers_may_differ_in_kv() -> None:
    cost = model_cost(replace(facts.model(3), kv_numels=(10, 20, 30)), Variant.FLOAT32)
    assert cost.kv_bytes(LayerRange(1, 3), 2) == 4 * 2 * 50


# ---------------------------------------------------------------- measured speed


def benchmark(*layer_s: tuple[int, float]) -> LayerBenchmark:
    return LayerBenchmark(tuple(BatchTime(rows, seconds) for rows, seconds in layer_s), 1e-5, 2e-3)


def test_speed_is_the_line_through_what_was_measured() -> None:
    speed = speed_of(benchmark((1, 1.1e-3), (4, 1.4e-3), (16, 2.6e-3)))
    assert speed.step_s == pytest.approx(1e-3)
    assert speed.row_s == pytest.approx(1e-4)
    assert (speed.prefill_s, speed.head_s) == (1e-5, 2e-3)


def test_one_measurement_says_nothing_about_rows() -> None:
    assert speed_of(benchmark((1, 1e-3))) == Speed(1e-3, 0.0, 1e-5, 2e-3)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4))
def test_no_measurement_makes_time_run_backwards(times: list[float]) -> None:
    speed = speed_of(benchmark(*((4**i, time) for i, time in enumerate(times))))
    assert speed.step_s > 0.0
    assert speed.row_s >= 0.0


def test_live_work_corrects_the_benchmark() -> None:
    made = device(10**9)
    made.slowdown = 2.0
    before = speed_of(made.benchmarks[MODEL.manifest_hash])
    assert device_speed(made, MODEL.manifest_hash) == before.slowed(2.0)


# ---------------------------------------------------------------- times under load


def test_an_idle_stage_takes_one_step_of_one_row() -> None:
    assert response_s(SPEED, 10.0, IDLE, last=False) == pytest.approx(10 * 1.1e-3)
    assert response_s(SPEED, 10.0, IDLE, last=True) == pytest.approx(10 * 1.1e-3 + 2e-3)
    assert SPEED.step_time_s(10.0, 1, last=True) == pytest.approx(response_s(SPEED, 10.0, IDLE, last=True))


@given(st.floats(0, 2000), st.floats(0, 2000), st.floats(0, 20_000), st.floats(0, 20_000))
def test_more_load_never_shortens_a_response(rows: float, more: float, prompts: float, longer: float) -> None:
    before = response_s(SPEED, 5.0, Load(rows, prompts), last=True)
    assert response_s(SPEED, 5.0, Load(rows + more, prompts), last=True) >= before * (1 - 1e-12)
    assert response_s(SPEED, 5.0, Load(rows, prompts + longer), last=True) >= before * (1 - 1e-12)


def test_more_than_it_can_do_takes_for_ever() -> None:
    assert response_s(SPEED, 10.0, Load(rows_per_s=1001.0), last=False) == math.inf
    assert response_s(SPEED, 10.0, Load(prompt_tokens_per_s=10_001.0), last=False) == math.inf


def test_a_prompt_passes_the_stages_in_chunks() -> None:
    chunk = float(PREFILL_CHUNK_TOKENS)
    assert prefill_s([1e-3, 3e-3], [2e-3], chunk / 2) == pytest.approx(chunk / 2 * 6e-3)
    assert prefill_s([1e-3, 3e-3], [2e-3], 4 * chunk) == pytest.approx(chunk * (6e-3 + 3 * 3e-3))
    assert prefill_s([1e-3], [], 0.0) == 0.0


# ---------------------------------------------------------------- what fits


def device(memory_bytes: int, max_layers: int | None = None, variant: Variant = Variant.FLOAT32) -> Device:
    made = Device(facts.key(1), facts.spec(max_layers, memory_bytes=memory_bytes, variant=variant))
    made.benchmarks[MODEL.manifest_hash] = facts.benchmark(0.01, head_s=0.5)
    return made


def memory_of(num_layers: float) -> int:
    return int(LAYER_BYTES * num_layers / (1 - MEMORY_FOR_ACTIVATIONS)) + 1


def test_layers_and_their_kv_must_fit_beside_the_activations() -> None:
    assert place(device(memory_of(7)), MODEL, first=False, last=False).max_layers == 7
    assert place(device(memory_of(6.99)), MODEL, first=False, last=False).max_layers == 6


def test_a_narrower_variant_fits_twice_the_layers() -> None:
    wide, narrow = device(memory_of(6)), device(memory_of(6), variant=Variant.BFLOAT16)
    assert place(narrow, MODEL, first=False, last=False).max_layers == 12
    assert place(wide, MODEL, first=False, last=False).max_layers == 6


def test_the_ends_of_a_pipeline_have_less_room() -> None:
    exact = device(memory_of(7))
    assert place(exact, MODEL, first=True, last=False).max_layers == 6
    assert place(exact, MODEL, first=False, last=True).max_layers == 6


def test_only_the_last_stage_pays_for_the_head() -> None:
    assert place(device(memory_of(7)), MODEL, first=True, last=False).extra_s == 0
    assert place(device(memory_of(7)), MODEL, first=False, last=True).extra_s == 0.5


def test_the_volunteers_limit_and_the_models_size_bound_it() -> None:
    assert place(device(memory_of(50), max_layers=3), MODEL, first=False, last=False).max_layers == 3
    assert place(device(memory_of(500)), MODEL, first=False, last=False).max_layers == 100


def test_too_small_a_device_takes_nothing_rather_than_less_than_nothing() -> None:
    assert place(device(0), MODEL, first=True, last=True).max_layers == 0


def test_a_long_context_is_reserved_only_up_to_a_limit() -> None:
    long = facts.model(100, context_length=10**6)
    bytes_per_layer = 4 * (1_000_000 + 10 * MIN_KV_TOKENS)
    made = device(int(3 * bytes_per_layer / (1 - MEMORY_FOR_ACTIVATIONS)) + 1)
    assert place(made, long, first=False, last=False).max_layers == 3


@given(st.integers(1, 99))
def test_memory_for_some_layers_holds_exactly_them_at_either_end(num_layers: int) -> None:
    exact = device(memory_for(MODEL, Variant.FLOAT32, num_layers))
    assert place(exact, MODEL, first=True, last=False).max_layers == num_layers
    assert place(exact, MODEL, first=False, last=True).max_layers == num_layers


def test_memory_for_all_layers_is_enough_for_both_ends() -> None:
    ended = replace(MODEL, embedding_numel=50_000_000, head_numel=70_000_000)
    exact = device(memory_for(ended, Variant.FLOAT32, ended.num_layers))
    assert place(exact, ended, first=True, last=True).max_layers == ended.num_layers


def test_some_memory_is_left_for_activations() -> None:
    assert usable_bytes(device(1000)) == pytest.approx(1000 * (1 - MEMORY_FOR_ACTIVATIONS))


def test_no_layer_is_for_nothing_and_no_prompt_token_either() -> None:
    """Times are divided by: a layer of which nothing is active, or a device that says zero, must not be an error."""
    sparse = replace(facts.model(4), active_numels=(1_000_000, 0, 0, 1_000_000))
    cost = model_cost(sparse, Variant.FLOAT32)
    assert all(before < after for before, after in pairwise(cost.work))
    speed = speed_of(LayerBenchmark((BatchTime(1, 0.0), BatchTime(8, 0.0)), 0.0, 0.0))
    assert min(speed.step_s, speed.prefill_s) > 0.0


def test_packed_layers_take_their_own_bytes_and_what_is_not_packed_the_variants() -> None:
    packed = (Packed(900_000, 500_000),) * 100
    model = replace(MODEL, packed_layers=packed, packed_embedding=Packed(100_000, 102_000))
    for variant, item_bytes in ((Variant.BFLOAT16, 2), (Variant.FLOAT32, 4)):
        cost = model_cost(model, variant)
        assert cost.weight_bytes(LayerRange(10, 12)) == 2 * (500_000 + item_bytes * 100_000)
        assert cost.embedding_bytes == 102_000
        assert cost.head_bytes == item_bytes * 100_000
