"""What lanes are expected to do: the vectorised forecast against plain arithmetic, the objective, lanes from slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coordinator.scheduler.cost import Bound, Workload, prefill_s, response_s
from coordinator.scheduler.forecast import (
    PLANNED_KV,
    PLANNED_LOAD,
    TOKEN_BYTES,
    lane_forecast,
    lane_rates,
    lane_times,
    lanes_of,
    latencies,
    layout_forecast,
    score,
    score_of,
    slowness,
    tables_of,
)
from coordinator.scheduler.plan import Lane, Problem
from coordinator.scheduler.state import Load
from coordinator.scheduler.tables import lane_batch
from protocol.values import LayerRange
from tests.fakes import lane_problems as pools
from tests.fakes import pool_facts as facts
from tests.fakes.lane_problems import NEAR_S, UPLOAD, Given

GENEROUS = Bound(ttft_s=1e6, tpot_s=1e6)

# ---------------------------------------------------------------- plain arithmetic, one holder a stage


def plain_latencies(problem: Problem, counts: Sequence[int], rate: float) -> tuple[float, float]:
    """(TPOT, TTFT) of a lane whose stage i is offer i, all in one region, at so many tokens per second."""
    workload, last = problem.workload, len(counts) - 1
    prompts = rate * workload.num_prompt_tokens / workload.num_answer_tokens
    speeds = [offer.speed for offer in problem.offers]
    delays = [NEAR_S] * len(counts) if last else [0.0]
    row_bytes = [*[float(problem.model.hidden_bytes)] * last, float(TOKEN_BYTES)]
    transfers = [size / UPLOAD if last else 0.0 for size in row_bytes]
    fixed = [
        s.step_s * n + (s.head_s if i == last else 0.0) for i, (s, n) in enumerate(zip(speeds, counts, strict=True))
    ]
    busy_up = [(rate + prompts) * seconds for seconds in transfers[:-1]]
    waits = [s * b / (1.0 - b) for s, b in zip(transfers, busy_up, strict=False)]
    rough_s = sum(delays) + sum(transfers) + sum(waits)
    for speed, count, fixed_s in zip(speeds, counts, fixed, strict=True):
        busy = prompts * count * speed.prefill_s + rate * count * speed.row_s
        rough_s += (fixed_s + count * speed.row_s) / (1.0 - busy)
    others = max(0.0, rate - 1.0 / rough_s)
    load = Load(others, prompts)
    tpot_s = sum(delays) + sum(transfers) + sum(waits)
    tokens_s = []
    for i, (speed, count) in enumerate(zip(speeds, counts, strict=True)):
        tpot_s += response_s(speed, count, load, last=i == last, num_others=others * rough_s, trip_s=rough_s)
        tokens_s.append(count * speed.prefill_s / (1.0 - prompts * count * speed.prefill_s))
    ttft_s = prefill_s(tokens_s, [s + w for s, w in zip(transfers, waits, strict=False)], workload.num_prompt_tokens)
    return tpot_s, ttft_s + sum(delays) + sum(fixed)


WIDE = replace(facts.model(24), hidden_size=512)
"""A row is 2 KiB, 2 ms on an uplink."""


@st.composite
def chains(draw: st.DrawFn) -> tuple[Problem, list[int], float]:
    size = draw(st.integers(1, 4))
    edges = sorted(draw(st.sets(st.integers(1, 23), min_size=size - 1, max_size=size - 1)))
    counts = [b - a for a, b in itertools.pairwise([0, *edges, 24])]
    devices = [Given(30, layer_s=draw(st.floats(1e-5, 1e-2))) for _ in counts]
    num_prompt = draw(st.sampled_from([1.0, 100.0, 512.0, 2000.0]))
    workload = Workload(num_prompt, draw(st.sampled_from([16.0, 256.0])), 4000.0, 1e6)
    problem = pools.problem(devices, workload=workload, model=WIDE)
    slowest = max(
        n * (o.speed.row_s + o.speed.prefill_s * num_prompt / workload.num_answer_tokens)
        for n, o in zip(counts, problem.offers, strict=True)
    )
    if len(counts) > 1:
        slowest = max(slowest, (1.0 + num_prompt / workload.num_answer_tokens) * problem.model.hidden_bytes / UPLOAD)
    return problem, counts, draw(st.floats(0.0, 0.95)) / slowest


@given(chains())
def test_many_lanes_at_once_come_out_as_plain_arithmetic_says(chain: tuple[Problem, list[int], float]) -> None:
    problem, counts, rate = chain
    p = tables_of(problem)
    batch = lane_batch([tuple((i,) for i in range(len(counts)))])
    times = lane_times(p, batch, np.array(counts, dtype=float))
    tpot_s, ttft_s = latencies(p, batch, times, np.array([rate]))
    plain_tpot_s, plain_ttft_s = plain_latencies(problem, counts, rate)
    assert tpot_s[0] == pytest.approx(plain_tpot_s, rel=1e-6)
    assert ttft_s[0] == pytest.approx(plain_ttft_s, rel=1e-6)


@given(chains())
def test_the_most_that_a_lane_does_keeps_the_bound_and_a_little_more_does_not(
    chain: tuple[Problem, list[int], float],
) -> None:
    problem, counts, _ = chain
    p = tables_of(problem)
    batch = lane_batch([tuple((i,) for i in range(len(counts)))])
    times = lane_times(p, batch, np.array(counts, dtype=float))
    rates = lane_rates(p, batch, times)
    most = float(rates.tokens_per_s[0])
    assume(rates.tpot_s[0] <= problem.bound.tpot_s)  # one that is too slow alone keeps nothing
    if most > 0.0:
        assert is_kept(problem, counts, most, float(times.num_sessions[0]))
    tpot_s, ttft_s = plain_latencies(problem, counts, 0.0)
    bisected = float(times.num_sessions[0]) / (tpot_s + ttft_s / problem.workload.num_answer_tokens)
    beyond = 1.001 * most + 0.002 * bisected
    assert not is_kept(problem, counts, beyond, float(times.num_sessions[0]))


def is_kept(problem: Problem, counts: Sequence[int], rate: float, num_sessions: float) -> bool:
    prompts = rate * problem.workload.num_prompt_tokens / problem.workload.num_answer_tokens
    for count, offer in zip(counts, problem.offers, strict=True):
        if count * (prompts * offer.speed.prefill_s + rate * offer.speed.row_s) >= 1.0:
            return False
    if len(counts) > 1 and (rate + prompts) * problem.model.hidden_bytes / UPLOAD >= 1.0:
        return False
    tpot_s, ttft_s = plain_latencies(problem, counts, rate)
    open_sessions = rate * (tpot_s + ttft_s / problem.workload.num_answer_tokens)
    alone = plain_latencies(problem, counts, 0.0)
    bounds = problem.bound.tpot_s, problem.bound.ttft_s
    planned = [s + PLANNED_LOAD * (bound - s) for s, bound in zip(alone, bounds, strict=True)]
    return tpot_s <= planned[0] and ttft_s <= planned[1] and open_sessions <= max(1.0, PLANNED_KV * num_sessions)


def test_a_lane_is_forecast_the_same_whoever_is_beside_it() -> None:
    problem = pools.problem([Given(24), Given(13), Given(13), Given(30)])
    lanes = [pools.lane((24, (0,))), pools.lane((12, (1,)), (12, (2, 3)))]
    both = layout_forecast(problem, lanes)
    each = [lane_forecast(problem, lane) for lane in lanes]
    assert both.tokens_per_s == pytest.approx(sum(f.tokens_per_s for f in each))
    assert both.num_sessions == sum(f.num_sessions for f in each)
    assert min(f.tpot_s for f in each) <= both.tpot_s <= max(f.tpot_s for f in each)


# ---------------------------------------------------------------- what decides


def test_kv_room_is_what_the_stage_with_the_least_of_it_has() -> None:
    problem = pools.problem([Given(13), Given(24)])
    alone = pools.problem([Given(24), Given(24)])
    halves = pools.lane((12, (0,)), (12, (1,)))
    assert lane_forecast(problem, halves).num_sessions < lane_forecast(alone, halves).num_sessions


def test_an_uplink_that_is_full_limits_a_lane_whatever_its_devices_could_do() -> None:
    problem = replace(pools.problem([Given(13, layer_s=1e-6)] * 2, model=WIDE), bound=GENEROUS)
    halves = pools.lane((12, (0,)), (12, (1,)))
    rows_per_token = 1.0 + problem.workload.num_prompt_tokens / problem.workload.num_answer_tokens
    most = UPLOAD / problem.model.hidden_bytes / rows_per_token
    assert 0.5 * most < lane_forecast(problem, halves).tokens_per_s <= most


def test_a_second_holder_adds_kv_room_and_throughput_but_no_speed_for_one_request() -> None:
    problem = replace(pools.problem([Given(25), Given(25)]), bound=GENEROUS)
    one, two = pools.lane((24, (0,))), pools.lane((24, (0, 1)))
    alone, shared = lane_forecast(problem, one), lane_forecast(problem, two)
    assert shared.num_sessions == pytest.approx(2 * alone.num_sessions, abs=2)
    assert shared.tokens_per_s == pytest.approx(2 * alone.tokens_per_s, rel=0.05)
    assert shared.tpot_s == pytest.approx(alone.tpot_s)


def test_a_lane_over_regions_pays_for_the_way() -> None:
    near = pools.problem([Given(13), Given(13)])
    far = pools.problem([Given(13), Given(13, region=1)])
    halves = pools.lane((12, (0,)), (12, (1,)))
    slower = lane_forecast(far, halves).tpot_s - lane_forecast(near, halves).tpot_s
    assert slower == pytest.approx(2 * (pools.FAR_S - NEAR_S)), "there and back"


def test_a_lane_that_cannot_keep_the_bound_even_alone_counts_for_next_to_nothing() -> None:
    quick = pools.problem([Given(24)])
    slow = replace(quick, bound=Bound(ttft_s=10.0, tpot_s=1e-4))
    lane = pools.lane((24, (0,)))
    assert 0.0 < lane_forecast(slow, lane).tokens_per_s < 0.02 * lane_forecast(quick, lane).tokens_per_s


def test_no_lanes_do_nothing() -> None:
    problem = pools.problem([Given(24)])
    assert layout_forecast(problem, []).tokens_per_s == 0.0
    assert score(problem, []) == 0.0


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 80), st.floats(0, 80), st.floats(1, 1e6))
def test_more_throughput_and_shorter_answers_are_never_worth_less(
    rate: float, more: float, latency: float, longer: float, wanted: float
) -> None:
    slow, slower = slowness(latency, 74.0), slowness(latency + longer, 74.0)
    assert score_of(rate + more, slow, wanted) >= score_of(rate, slow, wanted) - 1e-9
    assert score_of(rate, slower, wanted) <= score_of(rate, slow, wanted) + 1e-9


def test_twice_as_fast_is_welcome_in_a_fast_pool_and_in_a_slow_one() -> None:
    fast, slow = (float(slowness(2.0 * s, 100.0) - slowness(s, 100.0)) for s in (5.0, 40.0))
    assert slow < 1.5 * fast
    assert slowness(0.0, 100.0) == 0.0
    assert slowness(1e9, 100.0) == slowness(100.0, 100.0) == pytest.approx(1.0)


def test_beyond_the_demand_more_throughput_is_worth_little() -> None:
    below = score_of(70.0, 0.3, 100.0) - score_of(40.0, 0.3, 100.0)
    beyond = score_of(230.0, 0.3, 100.0) - score_of(200.0, 0.3, 100.0)
    assert 0.0 < beyond < 0.2 * below


# ---------------------------------------------------------------- lanes from slices


def held(*pieces: tuple[int, int]) -> dict[int, LayerRange]:
    return {i: LayerRange(*piece) for i, piece in enumerate(pieces)}


def stages(lanes: Sequence[Lane]) -> list[list[tuple[int, int, tuple[int, ...]]]]:
    return [[(s.layers.start, s.layers.stop, s.holders) for s in lane.stages] for lane in lanes]


def test_slices_that_continue_each_other_are_a_lane() -> None:
    problem = pools.problem([Given(24)] * 3)
    assert stages(lanes_of(problem, held((10, 24), (0, 4), (4, 10)))) == [[(0, 4, (1,)), (4, 10, (2,)), (10, 24, (0,))]]


def test_the_lane_with_the_fewest_stages_comes_first() -> None:
    problem = pools.problem([Given(24)] * 3)
    assert stages(lanes_of(problem, held((0, 12), (12, 24), (0, 24)))) == [
        [(0, 24, (2,))],
        [(0, 12, (0,)), (12, 24, (1,))],
    ]


def test_a_slice_that_completes_no_lane_helps_one_that_has_the_same_layers() -> None:
    problem = pools.problem([Given(24)] * 3)
    assert stages(lanes_of(problem, held((0, 12), (12, 24), (12, 24)))) == [[(0, 12, (0,)), (12, 24, (1, 2))]]


def test_slices_that_leave_a_hole_are_no_lane() -> None:
    problem = pools.problem([Given(24)] * 2)
    assert lanes_of(problem, held((0, 12), (13, 24))) == ()
    assert lanes_of(problem, {}) == ()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 23), st.integers(1, 24)).filter(lambda p: p[0] < p[1]), max_size=12))
def test_lanes_are_whole_and_share_no_holder(pieces: list[tuple[int, int]]) -> None:
    problem = pools.problem([Given(24)] * 12)
    found = lanes_of(problem, held(*pieces))
    assert pools.faults(problem, found) == []
    assert all(stage.layers == LayerRange(*pieces[i]) for lane in found for stage in lane.stages for i in stage.holders)
