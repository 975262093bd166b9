"""What fits on a device, and what its time is."""

from __future__ import annotations

from coordinator.scheduler.cost import MEMORY_FOR_ACTIVATIONS, MIN_KV_TOKENS, place
from coordinator.scheduler.state import Device
from protocol.values import Variant
from tests.fakes import pool_facts as facts

MODEL = facts.model(100, context_length=100)
LAYER_BYTES = 4 * (1_000_000 + 10 * 100)


def device(memory_bytes: int, max_layers: int | None = None, variant: Variant = Variant.FLOAT32) -> Device:
    made = Device(facts.key(1), facts.spec(max_layers, memory_bytes=memory_bytes, variant=variant))
    made.benchmarks[MODEL.manifest_hash] = facts.benchmark(0.01, head_s=0.5)
    return made


def memory_for(num_layers: float) -> int:
    return int(LAYER_BYTES * num_layers / (1 - MEMORY_FOR_ACTIVATIONS)) + 1


def test_layers_and_their_kv_must_fit_beside_the_activations() -> None:
    assert place(device(memory_for(7)), MODEL, first=False, last=False).max_layers == 7
    assert place(device(memory_for(6.99)), MODEL, first=False, last=False).max_layers == 6


def test_a_narrower_variant_fits_twice_the_layers() -> None:
    wide, narrow = device(memory_for(6)), device(memory_for(6), variant=Variant.BFLOAT16)
    assert place(narrow, MODEL, first=False, last=False).max_layers == 12
    assert place(wide, MODEL, first=False, last=False).max_layers == 6


def test_the_ends_of_a_pipeline_have_less_room() -> None:
    exact = device(memory_for(7))
    assert place(exact, MODEL, first=True, last=False).max_layers == 6
    assert place(exact, MODEL, first=False, last=True).max_layers == 6


def test_only_the_last_stage_pays_for_the_head() -> None:
    assert place(device(memory_for(7)), MODEL, first=True, last=False).extra_s == 0
    assert place(device(memory_for(7)), MODEL, first=False, last=True).extra_s == 0.5


def test_the_volunteers_limit_and_the_models_size_bound_it() -> None:
    assert place(device(memory_for(50), max_layers=3), MODEL, first=False, last=False).max_layers == 3
    assert place(device(memory_for(500)), MODEL, first=False, last=False).max_layers == 100


def test_too_small_a_device_takes_nothing_rather_than_less_than_nothing() -> None:
    assert place(device(0), MODEL, first=True, last=True).max_layers == 0


def test_a_long_context_is_reserved_only_up_to_a_limit() -> None:
    long = facts.model(100, context_length=10**6)
    bytes_per_layer = 4 * (1_000_000 + 10 * MIN_KV_TOKENS)
    made = device(int(3 * bytes_per_layer / (1 - MEMORY_FOR_ACTIVATIONS)) + 1)
    assert place(made, long, first=False, last=False).max_layers == 3
