"""What is concluded from runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.scheduling.compare import Run, equal_rate_of
from benchmarks.scheduling.comparison import (
    ablation,
    best,
    common_seeds,
    compared,
    equal_load,
    equal_loads,
    equal_rate,
    others,
    read,
    throughput,
)
from benchmarks.scheduling.scenarios import SCENARIOS
from coordinator.simulate import engine
from tests.benchmarks.scheduling.runs import SCENARIO, climbed, run


def test_runs_are_read_from_all_files_by_scenario_and_policy(tmp_path: Path) -> None:
    for policy in ("ours", "petals"):
        lines = [json.dumps(asdict(run(policy, rate, 10.0))) for rate in (1.0, 2.0)]
        (tmp_path / f"{SCENARIO}.{policy}.0.jsonl").write_text("\n".join(lines) + "\n")
    tables = read(tmp_path)
    assert list(tables) == [SCENARIO]
    assert {policy: len(runs) for policy, runs in tables[SCENARIO].items()} == {"ours": 2, "petals": 2}


def test_the_best_of_the_ladder_counts() -> None:
    table = {"ours": climbed("ours", {1: 100, 2: 300, 4: 50}), "petals": climbed("petals", {1: 100, 2: 80})}
    assert best(table["ours"]).goodput == 300
    assert throughput(table).ratios == (3.0,)


def test_halves_and_ours_with_one_thing_off_are_no_rivals() -> None:
    runs: dict[float, float] = {1: 100.0, 2: 50.0}
    names = ["ours", "petals+our-routing", "without-search", "random", "petals", "petals-2"]
    table = {name: climbed(name, {1: 900.0} if "+" in name else runs) for name in names}
    assert others(table) == ["petals", "random", "petals-2"]
    assert set(throughput(table).goodput) == {"ours", "petals", "random", "petals-2"}
    assert throughput(table).figure == 1.0


def test_equal_load_is_the_rate_next_to_a_share_of_what_the_best_other_served() -> None:
    tokens = engine.usual_workload(SCENARIOS[SCENARIO], SCENARIOS[SCENARIO].models[0]).num_answer_tokens
    table = {
        "ours": climbed("ours", {1: tokens, 2: 2 * tokens, 4: 4 * tokens, 8: 8 * tokens}),
        "petals": climbed("petals", {1: tokens, 2: 2 * tokens, 4: 4 * tokens, 8: 7 * tokens}),
        "random": climbed("random", {1: 5, 2: 2, 5: 2}),
    }
    assert equal_rate_of(SCENARIO, 7 * tokens) == pytest.approx(4.2)
    assert equal_rate(table) == 2, "random never met 4"
    found = equal_load(table)
    assert found is not None
    assert (found.rate, found.share) == (2, pytest.approx(2 / 7))


def test_policies_that_never_met_at_one_rate_are_not_compared_by_latency() -> None:
    table = {"ours": climbed("ours", {1: 10}), "petals": climbed("petals", {2: 10})}
    assert equal_rate(table) is None
    assert equal_loads(table) == []


def test_a_policy_that_turned_people_away_is_not_compared_by_the_latency_of_the_others() -> None:
    table = {
        "ours": [run("ours", 1, 100, latency_s=3.0)],
        "petals": [run("petals", 1, 90, latency_s=6.0, num_finished=95)],
        "random": [run("random", 1, 10, latency_s=1.0, num_finished=94)],
    }
    found = equal_load(table)
    assert found is not None
    assert (found.rival.policy, found.gain, found.left_out) == ("petals", 0.5, ("random",))


def test_nor_is_ours() -> None:
    table = {"ours": [run("ours", 1, 100, num_finished=94)], "petals": [run("petals", 1, 90)]}
    assert equal_load(table) is None


def two_seeds() -> dict[str, Sequence[Run]]:
    return {
        "ours": [run("ours", 1, 100, seed=0), run("ours", 2, 200, seed=0), run("ours", 1, 400, seed=1)],
        "petals": [run("petals", 1, 100, seed=0), run("petals", 1, 50, seed=1)],
        "random": [run("random", 1, 10, seed=0), run("random", 1, 100, seed=1)],
    }


def test_of_several_seeds_each_counts_with_its_own_best_against_its_own_best_other() -> None:
    found = throughput(two_seeds())
    assert found.seeds == (0, 1)
    assert found.goodput == {"ours": 300.0, "petals": 75.0, "random": 55.0}
    assert found.ratios == (2.0, 4.0)
    assert found.figure == 3.0
    assert found.rivals == ("petals", "random")


def test_only_seeds_that_all_were_run_with_count() -> None:
    table = {**two_seeds(), "helix": [run("helix", 1, 1, seed=1)]}
    assert common_seeds(table) == (1,)
    assert compared({SCENARIO: {**table, "hexgen": [run("hexgen", 1, 1, seed=2)]}}) == {}


def test_scenarios_without_another_policy_are_not_compared() -> None:
    assert compared({SCENARIO: {"ours": [run("ours", 1, 1)]}}) == {}
    assert list(compared({SCENARIO: two_seeds()})) == [SCENARIO]


def test_an_ablation_is_compared_with_ours_over_the_seeds_of_both() -> None:
    table = {**two_seeds(), "without-search": [run("without-search", 1, 100, seed=0)]}
    assert ablation(table, "without-search") == (100.0, 0.5)


@pytest.mark.parametrize(
    ("runs", "is_marked"),
    [({1: 10, 2: 20}, True), ({1: 10, 2: 20, 3: 15}, False), ({1: 10, 2: 5}, False)],
)
def test_a_best_run_at_the_highest_rate_is_marked(runs: dict[float, float], is_marked: bool) -> None:
    table = {"ours": climbed("ours", runs), "petals": climbed("petals", {1: 10, 2: 1})}
    assert ("ours" in throughput(table).at_edge) is is_marked


def test_and_so_is_one_at_the_lowest_rate_that_already_left_the_bound() -> None:
    crowded = [run("petals", 1, 10, share_in_bound=0.5), run("petals", 2, 5, share_in_bound=0.2)]
    table = {"ours": climbed("ours", {1: 10, 2: 20, 3: 5}), "petals": crowded}
    assert throughput(table).at_edge == {"petals"}
