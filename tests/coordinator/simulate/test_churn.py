"""What happens to nodes is drawn beforehand, in order, and has the published availability."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from coordinator.simulate.churn import Fate, Turn, fates, mean_on_s
from coordinator.simulate.geography import Site, make_sites
from coordinator.simulate.scenario import Churn, Degrade, MassLeave, Outage, SlowDown
from tests.coordinator.simulate import pools

DAY_S = 86_400.0


def drawn(num_nodes: int, seed: int = 0, **changes: object) -> tuple[list[Fate], list[Site]]:
    sites = make_sites(num_nodes, 4, "fibre", np.random.default_rng(1))
    scenario = pools.scenario(num_nodes, drain_s=0.0, **changes)
    return fates(scenario, sites, np.random.default_rng(seed)), sites


def test_a_quiet_scenario_has_no_fates() -> None:
    assert drawn(5) == ([], drawn(5)[1])


def test_volunteers_leave_and_return_in_turn_and_in_order() -> None:
    all_fates, _ = drawn(50, churn=Churn(), duration_s=7 * DAY_S)
    assert all(one.at_s <= other.at_s for one, other in pairwise(all_fates))
    for node in range(50):
        away = [fate.turn is not Turn.RETURN for fate in all_fates if fate.node == node]
        assert away == [i % 2 == 0 for i in range(len(away))]


def test_in_the_long_run_nodes_are_there_as_often_as_published() -> None:
    duration_s = 300 * DAY_S
    all_fates, _ = drawn(100, churn=Churn(day_swing=0.0), duration_s=duration_s)
    away_s = 0.0
    for node in range(100):
        since = None
        for fate in [f for f in all_fates if f.node == node]:
            if fate.turn is Turn.RETURN:
                away_s += fate.at_s - (since or 0.0)
            since = None if fate.turn is Turn.RETURN else fate.at_s
        away_s += duration_s - since if since is not None else 0.0
    assert 1 - away_s / (100 * duration_s) == pytest.approx(0.68, abs=0.03)


def test_a_mean_stay_is_ten_hours() -> None:
    assert mean_on_s(Churn()) / 3600 == pytest.approx(10.3, abs=0.5)


def test_more_nodes_return_in_the_evening_than_in_the_morning() -> None:
    all_fates, sites = drawn(300, churn=Churn(), starts_at_h=0.0, duration_s=10 * DAY_S)
    frankfurt = [f.at_s / 3600 % 24 for f in all_fates if f.turn is Turn.RETURN and sites[f.node].region == 1]
    evening, morning = (sum(low <= hour < low + 6 for hour in frankfurt) for low in (16, 4))
    assert evening > 1.3 * morning


def test_an_outage_takes_a_whole_region_and_brings_it_back() -> None:
    all_fates, sites = drawn(20, happenings=(Outage(10.0, "tokyo", 30.0),))
    nodes = {node for node, site in enumerate(sites) if site.region == 2}
    assert {f.node for f in all_fates} == nodes
    assert [(f.at_s, f.turn) for f in all_fates] == [(10.0, Turn.CRASH)] * 5 + [(40.0, Turn.RETURN)] * 5


def test_half_of_the_nodes_leave_within_a_minute() -> None:
    all_fates, _ = drawn(40, happenings=(MassLeave(100.0),))
    assert len({f.node for f in all_fates}) == 20
    assert all(100.0 <= f.at_s <= 160.0 for f in all_fates)
    assert {f.turn for f in all_fates} == {Turn.LEAVE, Turn.CRASH}


def test_what_slows_down_or_degrades_recovers() -> None:
    all_fates, _ = drawn(10, happenings=(SlowDown(5.0, 0.2, 4.0, 10.0), Degrade(5.0, 0.1, 10.0, 0.5, 0.1)))
    assert [(f.turn, f.factor, f.delay_s) for f in all_fates if f.at_s == 5.0 and f.turn is Turn.SLOW] == [
        (Turn.SLOW, 4.0, 0.0)
    ] * 2
    assert [(f.factor, f.delay_s) for f in all_fates if f.turn is Turn.LINE] == [(0.5, 0.1), (1.0, 0.0)]
    assert {(f.turn, f.factor, f.delay_s) for f in all_fates if f.at_s == 15.0} == {
        (Turn.SLOW, 1.0, 0.0),
        (Turn.LINE, 1.0, 0.0),
    }


def test_the_same_seed_has_the_same_fates() -> None:
    assert drawn(30, 5, churn=Churn()) == drawn(30, 5, churn=Churn())
    assert drawn(30, 5, churn=Churn(), duration_s=DAY_S) != drawn(30, 6, churn=Churn(), duration_s=DAY_S)
