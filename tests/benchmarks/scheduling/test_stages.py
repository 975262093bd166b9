"""What stages take is tabulated by the same physics as the forecast's."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scheduling.ceilings import KEPT
from benchmarks.scheduling.stages import FIRST, LAST
from benchmarks.scheduling.worlds import WORKLOADS, World, problem_of_world
from coordinator.scheduler.forecast import latencies
from coordinator.scheduler.links import Floats, Ints
from coordinator.simulate.geography import Access
from tests.benchmarks.scheduling.drawn_lanes import Pool

LOADS = (0.0, 0.3, 0.9)
"""Rates, as parts of lanes' most."""


@pytest.mark.parametrize("access", ["lan", "home"])
@pytest.mark.parametrize("load", LOADS)
def test_stages_and_hops_add_up_to_the_time_per_token_and_to_the_first(access: Access, load: float) -> None:
    world = World(6, model="llama3-8b", num_regions=2, access=access, seed=2, workload=WORKLOADS[1])
    pool = Pool(problem_of_world(world), 7)
    num_compared = 0
    for _ in range(200):
        sketch, counts = pool.drawn()
        known = pool.known(sketch, counts)
        if known is None or max(map(len, sketch)) > 1 or len(sketch) == 1:  # with several holders leads are open
            continue
        num_compared += 1
        batch, times = pool.times(sketch, counts)
        rate = np.array([load * known.rate])
        tpot_s, ttft_s = latencies(pool.p, batch, times, rate)
        assert _added_up(pool, pool.lane(sketch), counts, rate) == pytest.approx((tpot_s[0], ttft_s[0]), rel=1e-9)
    assert num_compared >= 5


def _added_up(pool: Pool, lane: Ints, counts: tuple[int, ...], rate: Floats) -> tuple[float, float]:
    """(TPOT, TTFT) of a lane with prompts of one chunk."""
    groups, hops = lane[0], pool.ceilings(KEPT).hops_of(lane)
    ends = np.zeros(len(groups), dtype=np.intp)
    ends[0], ends[-1] = FIRST, LAST
    rates, stages = np.repeat(rate, len(groups)), np.arange(len(groups))
    trip_s = pool.groups.rough(groups, ends, rates)[stages, counts].sum() + hops.tpot_s[0]
    terms = pool.groups.terms(groups, ends, rates, np.full(len(groups), trip_s), 0.0)
    chunk = pool.p.problem.workload.num_prompt_tokens
    prompt_s = chunk * terms.prefill_s[stages, counts].sum() + terms.fixed_s[stages, counts].sum() + hops.ttft_s[0]
    return float(terms.response_s[stages, counts].sum() + hops.tpot_s[0]), float(prompt_s)
