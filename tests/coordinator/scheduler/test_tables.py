"""Offers as columns, and lanes side by side."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from coordinator.scheduler.cost import Workload
from coordinator.scheduler.tables import (
    LaneBatch,
    Sketch,
    lane_batch,
    model_table,
    offer_table,
    repeated,
    wanted_rate,
)
from tests.fakes import lane_problems as pools
from tests.fakes.lane_problems import Given


def test_each_offer_is_an_entry_of_each_column() -> None:
    problem = pools.problem([Given(5), Given(9, layer_s=0.5, region=1, max_layers=7)])
    table = offer_table(problem)
    assert table.memory.tolist() == [offer.memory_bytes for offer in problem.offers]
    assert table.step_s.tolist() == [1e-3, 0.5]
    assert table.max_layers[1] == 7
    assert table.regions.tolist() == [0, 1]
    assert table.rows.tolist() == [0, 1]


def test_a_pool_without_offers_has_empty_columns() -> None:
    assert len(offer_table(pools.problem([])).memory) == 0


def test_what_layers_differ_by_is_spread_over_all_of_them() -> None:
    model = pools.dense_first(num_layers=12, times=4)
    table = model_table(pools.problem([Given(20)], model=model))
    assert table.weight_bytes * 12 == pytest.approx(4 * sum(model.layer_numels))
    assert table.work * 12 == pytest.approx(15.0), "in layers from the middle"
    assert table.kv_token_bytes == pytest.approx(40.0)


def test_lanes_of_different_shapes_lie_side_by_side() -> None:
    batch = lane_batch([((3,), (1, 2)), ((0,),)])
    assert batch.holders.tolist() == [3, 1, 2, 0]
    assert batch.stage_starts.tolist() == [0, 1, 3]
    assert batch.lane_starts.tolist() == [0, 2]
    assert batch.lane_of.tolist() == [0, 0, 1]
    assert batch.stage_of.tolist() == [0, 1, 1, 2]
    assert batch.lane_of_holder.tolist() == [0, 0, 0, 1]
    assert batch.holder_starts.tolist() == [0, 3]
    assert batch.num_holders.tolist() == [1, 2, 1]
    assert batch.is_first.tolist() == [True, False, True]
    assert batch.is_last.tolist() == [False, True, True]


def test_sums_over_a_lane_are_sums_over_its_own_stages() -> None:
    batch = lane_batch([((3,), (1, 2)), ((0,),)])
    assert np.add.reduceat(np.array([1.0, 2.0, 4.0]), batch.lane_starts).tolist() == [3.0, 4.0]


def test_while_nobody_has_asked_every_device_stands_for_a_reader() -> None:
    unknown = Workload()
    assert wanted_rate(unknown, bound_tpot_s=0.25, num_devices=10) == pytest.approx(40.0)
    more = wanted_rate(replace(unknown, tokens_per_s=100.0), bound_tpot_s=0.25, num_devices=10)
    assert more >= 100.0


def test_lanes_repeated_are_laid_out_as_if_they_had_been_given_so_often() -> None:
    sketches: list[Sketch] = [((0,), (1, 2)), ((3,),)]
    many, plain = repeated(lane_batch(sketches), 3), lane_batch(sketches * 3)
    for field in fields(LaneBatch):
        assert getattr(many, field.name).tolist() == getattr(plain, field.name).tolist()


def test_a_stage_has_the_least_of_what_its_holders_have() -> None:
    shared, plain = lane_batch([((0, 1), (2,))]), lane_batch([((0,), (2,))])
    assert shared.least_of_stages(np.array([3.0, 2.0, 5.0])).tolist() == [2.0, 5.0]
    assert plain.least_of_stages(np.array([3.0, 5.0])).tolist() == [3.0, 5.0]
    assert (shared.is_plain, plain.is_plain) == (False, True)
