"""The simulator is given an emulated pool's nodes, links and requests as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.claims.policies import OURS, policy_named
from benchmarks.claims.predicting import PlayedPool, hop_overhead_s, predict, relative_error, sim_model
from benchmarks.claims.scene import Ask, equal
from benchmarks.network import Link
from coordinator.scheduler.cost import Speed, model_cost
from coordinator.scheduler.state import ModelFacts
from protocol.values import LayerRange, Variant

NUM_LAYERS = 12
FACTS = ModelFacts(
    name="tiny",
    manifest_hash="2c" * 32,
    context_length=4096,
    layer_numels=(400_000,) * NUM_LAYERS,
    embedding_numel=400_000,
    head_numel=400_000,
    kv_numel_per_token=64,
    hidden_size=1024,
)
SPEED = Speed(step_s=0.004, row_s=0.0004, prefill_s=0.0002, head_s=0.0)
SCENE = equal(2, max_layers=6)
NUM_ANSWER = 11


def played(num: int = 3, every_s: float = 20.0, scene_delay_s: float = 0.005, cut: int = 6) -> PlayedPool:
    asks = tuple(Ask(number * every_s, 50, NUM_ANSWER) for number in range(num))
    scene = replace(SCENE, within=Link(delay_s=scene_delay_s))
    speeds = {node.name: SPEED for node in scene.nodes}
    pieces = (LayerRange(0, cut), LayerRange(cut, NUM_LAYERS))
    layers = {node.name: piece for node, piece in zip(scene.nodes, pieces, strict=True)}
    return PlayedPool(scene, FACTS, speeds, layers, 0.001, asks, num * every_s, 0.0)


def test_a_float32_model_has_the_same_bytes_in_the_simulators_variant() -> None:
    real, told = model_cost(FACTS, Variant.FLOAT32), model_cost(sim_model(FACTS).facts, Variant.BFLOAT16)
    layers = LayerRange(0, NUM_LAYERS)
    assert told.weight_bytes(layers) == real.weight_bytes(layers)
    assert told.kv_bytes(layers, 100) == real.kv_bytes(layers, 100)
    assert told.hidden_bytes == real.hidden_bytes


def test_requests_alone_take_what_devices_and_links_take() -> None:
    outcome = predict(played(), policy_named(OURS), seed=1)
    assert outcome.num_finished == 3
    stages_s = NUM_LAYERS * (SPEED.step_s + SPEED.row_s)
    assert outcome.tpot_s.mean == pytest.approx(stages_s + 2 * (0.005 + 0.001), rel=0.05)


@pytest.mark.parametrize("cut", [5, 6])
def test_nodes_hold_what_they_held_in_the_real_pool(cut: int) -> None:
    pool = replace(played(cut=cut), scene=equal(2, max_layers=7))
    outcome = predict(pool, policy_named(OURS), seed=1)
    assert sorted((held.start, held.stop) for held in outcome.held) == [(0, cut), (cut, NUM_LAYERS)]


def test_a_longer_way_makes_tokens_later_by_as_much() -> None:
    near, far = (predict(played(scene_delay_s=delay_s), policy_named(OURS), seed=1) for delay_s in (0.005, 0.055))
    assert far.tpot_s.mean - near.tpot_s.mean == pytest.approx(2 * 0.05, rel=0.05)


def test_a_prediction_is_the_same_each_time() -> None:
    assert predict(played(), policy_named(OURS), seed=1) == predict(played(), policy_named(OURS), seed=1)


def test_errors_are_relative_to_what_was_seen() -> None:
    assert relative_error(90.0, 100.0) == pytest.approx(0.1)
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(1.0, 0.0) == 1.0


def test_what_a_hop_costs_is_what_computing_and_delays_leave() -> None:
    assert hop_overhead_s([0.1, 0.12], stage_s=0.05, delays_s=0.04, num_hops=2) == pytest.approx(0.01)
    assert hop_overhead_s([0.05], stage_s=0.05, delays_s=0.04, num_hops=2) == 0.0
