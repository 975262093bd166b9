"""Whole runs: nothing is lost, nothing depends on chance that has no seed, and more load never helps."""

from __future__ import annotations

import pytest

from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import response_s
from coordinator.scheduler.state import IDLE
from coordinator.simulate import engine
from coordinator.simulate.engine import cause_of
from coordinator.simulate.hardware import CLASSES, true_speed
from coordinator.simulate.models import MODELS
from coordinator.simulate.outcome import Outcome
from coordinator.simulate.scenario import Churn, MassLeave, Outage, Pool, Scenario, SlowDown, Traffic
from protocol.values import NodeId
from tests.coordinator.simulate import pools
from tests.coordinator.simulate.plain_scheduler import PlainScheduler

FOUR_REGIONS = Pool(16, {"rtx4090-24g": 1.0, "rtx3060-12g": 1.0}, num_regions=4, access="fibre")
SCENARIOS: dict[str, Scenario] = {
    "quiet": pools.scenario(rate=0.3),
    "crowded": pools.scenario(2, 5.0),
    "churning": pools.scenario(12, 1.0, churn=Churn(on_scale_h=0.02, crash_share=0.5), duration_s=300.0),
    "half leave": pools.scenario(12, 1.0, happenings=(MassLeave(60.0),)),
    "outage": pools.scenario(pool=FOUR_REGIONS, rate=1.0, happenings=(Outage(60.0, "tokyo", 60.0),)),
    "cold": pools.scenario(4, 0.5, cold_start=True),
}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("max_layers", [1000, 8])
def test_every_request_that_arrived_ends_exactly_once(name: str, max_layers: int) -> None:
    outcome = pools.run(SCENARIOS[name], max_layers)
    assert outcome.num_arrived > 20
    assert pools.num_ended(outcome) == outcome.num_arrived


def test_an_idle_single_stage_pools_time_per_token_is_the_closed_form() -> None:
    outcome = pools.run(pools.scenario(1, 0.02, duration_s=3000.0, tick_s=50.0))
    scenario = pools.scenario()
    speed = true_speed(CLASSES["rtx4090-24g"], MODELS["llama3-8b-4bit"], scenario.calibration)
    assert outcome.tpot_s.p50 == pytest.approx(response_s(speed, 32.0, IDLE, last=True), rel=0.01)


def test_more_load_never_gives_lower_latency() -> None:
    outcomes = [pools.run(pools.scenario(2, rate)) for rate in (0.5, 4.0, 12.0, 30.0)]
    paces = [outcome.tpot_s.mean for outcome in outcomes]
    waits = [outcome.ttft_s.mean for outcome in outcomes]
    assert paces == sorted(paces)
    assert waits == sorted(waits)


def test_the_same_seed_has_the_same_outcome_and_another_has_another() -> None:
    small = SCENARIOS["churning"]
    assert pools.run(small, 8, seed=3) == pools.run(small, 8, seed=3)
    assert pools.run(small, 8, seed=3) != pools.run(small, 8, seed=4)


def test_every_policy_meets_the_same_users_and_fates() -> None:
    small = SCENARIOS["half leave"]
    one, other = pools.run(small, 8), pools.run(small, 1000)
    assert one.num_arrived == other.num_arrived
    assert one.series[-1].num_nodes == other.series[-1].num_nodes == 6


def test_a_dead_regions_requests_are_resumed_elsewhere() -> None:
    simulation = pools.simulation(SCENARIOS["outage"], 1000)
    outcome = simulation.run()
    assert outcome.num_restarted > 0
    assert outcome.num_failed == 0
    assert outcome.num_finished == outcome.num_arrived
    scheduler = simulation.timeline._scheduler
    assert isinstance(scheduler, PlainScheduler)
    assert sum(isinstance(event, ev.NodeLeft) for event in scheduler.seen) == 4
    assert outcome.series[-1].num_nodes == 16


def test_no_node_left_means_silence_until_the_end() -> None:
    outcome = pools.run(pools.scenario(3, 1.0, happenings=(MassLeave(60.0, 1.0, 1.0),), drain_s=20.0))
    assert outcome.longest_gap_s > 120
    assert outcome.held == ()
    assert outcome.num_unfinished > 50


def test_a_warm_pool_serves_at_once_and_moves_nothing() -> None:
    outcome = pools.run(SCENARIOS["quiet"])
    assert outcome.bytes_moved == {}
    assert outcome.ttft_s.p99 < 5
    assert outcome.num_finished == outcome.num_arrived


def test_a_cold_pool_downloads_every_slice_first() -> None:
    outcome = pools.run(SCENARIOS["cold"])
    one_copy = sum(MODELS["llama3-8b-4bit"].facts.layer_numels) * 4.5 / 8
    assert outcome.bytes_moved["join"] > 4 * one_copy
    assert outcome.series[0].tokens_per_s == 0
    assert outcome.series[-1].tokens_per_s > 0


def test_slow_devices_make_everything_slower() -> None:
    slow = pools.scenario(2, 0.5, happenings=(SlowDown(0.0, 1.0, 5.0, 1000.0),))
    assert pools.run(slow).tpot_s.mean > 4 * pools.run(pools.scenario(2, 0.5)).tpot_s.mean


def test_goodput_counts_only_what_is_within_the_bound() -> None:
    strict = pools.run(pools.scenario(1, 12.0, ttft_bound_s=60.0))
    assert 0 < strict.goodput_tokens_per_s < strict.tokens_per_s
    assert pools.run(pools.scenario(1, 4.0, tpot_bound_s=1e-6)).goodput_tokens_per_s == 0


def test_devices_are_busier_under_more_load_and_never_more_than_always() -> None:
    few, many = (pools.run(pools.scenario(2, rate)) for rate in (0.1, 6.0))
    assert 0 < few.mean_utilisation < many.mean_utilisation
    assert max(row.utilisation for row in many.held) < 1.1


def test_a_ladder_of_rates_finds_the_best_goodput(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def scheduler(scenario: Scenario, policy: object) -> PlainScheduler:
        tried.append(scenario.traffic.requests_per_s)
        return PlainScheduler()

    monkeypatch.setattr(engine, "new_scheduler", scheduler)
    small = pools.scenario(1, traffic=Traffic(1.0))
    best = engine.find_goodput(small, None, [0.5, 1.0, 4.0, 20.0, 40.0], seed=2)
    alone: list[Outcome] = [engine.run(small.at_rate(rate), None, 2) for rate in (0.5, 1.0, 4.0)]
    assert best.goodput_tokens_per_s >= max(outcome.goodput_tokens_per_s for outcome in alone)
    assert tried[:4] == [0.5, 1.0, 4.0, 20.0]
    with pytest.raises(ValueError, match="at least one rate"):
        engine.find_goodput(small, None, [])


def test_bytes_are_counted_for_what_caused_them() -> None:
    node = NodeId("0" * 32)
    assert cause_of(ev.NodeJoined(node, ())) == "join"
    assert cause_of(ev.NodeLeft(node)) == "leave"
    assert cause_of(ev.TimePassed()) == "re-plan"
    assert cause_of(ev.Replan()) == "re-plan"
