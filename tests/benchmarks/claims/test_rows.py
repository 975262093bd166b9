from __future__ import annotations

import pytest

from benchmarks.claims.playing import Effort, Ladder, Played, played, rising
from benchmarks.claims.policies import OURS
from benchmarks.claims.rows import against_best, ladder_table, node_seconds_per_million
from benchmarks.claims.scene import Ask, Load
from benchmarks.claims.users import Answer, Summary


def step(latency_s: float, goodput: float, busy: float = 0.5) -> Played:
    summary = Summary(10, 10, 10, goodput, goodput, latency_s, latency_s, 0.5, 0.1, 0.2)
    return Played(1.0, summary, {"a": 10, "b": 5}, {"a": busy, "b": busy}, 60.0, 0.2, 0)


def ladder(policy: str, *steps: Played) -> Ladder:
    return Ladder(policy, {"a": "0-5"}, steps, {})


def test_ours_is_compared_with_the_best_of_the_others_in_each_measure() -> None:
    others = [ladder("one", step(2.0, 10.0), step(9.0, 20.0)), ladder("two", step(4.0, 40.0))]
    text = against_best([ladder(OURS, step(1.0, 30.0), step(3.0, 80.0)), *others])
    assert text == "Mean latency 50.0 % below the best other policy, throughput 2.00 times the best other's."


def test_being_worse_is_said_as_plainly() -> None:
    text = against_best([ladder(OURS, step(3.0, 10.0)), ladder("one", step(2.0, 20.0))])
    assert text == "Mean latency 50.0 % above the best other policy, throughput 0.50 times the best other's."


@pytest.mark.parametrize("policies", [[OURS], ["petals"]])
def test_without_both_sides_there_is_nothing_to_compare(policies: list[str]) -> None:
    assert against_best([ladder(policy, step(1.0, 1.0)) for policy in policies]) == "Nothing to compare."


def test_the_table_has_latency_at_the_lowest_rate_and_throughput_at_the_best() -> None:
    steps = step(1.0, 30.0), step(3.0, 80.0), step(9.0, 20.0)
    head, *rows = ladder_table([ladder(OURS, *steps), ladder("one", *steps[:2])])
    ours, other = (dict(zip(head, row, strict=True)) for row in rows)
    assert ours["mean latency"] == "1.00 s"
    assert ours["best tokens/s in the bound"] == "80.0 at 1/s"
    assert other["best tokens/s in the bound"] == "80.0 at 1/s, the highest rate tried"


def test_node_seconds_are_of_the_step_with_most_throughput() -> None:
    one = ladder(OURS, step(1.0, 10.0), step(1.0, 20.0, busy=1.0))
    assert node_seconds_per_million(one, num_nodes=2) == (2 * 50_000.0, 2 * 50_000.0)
    assert node_seconds_per_million(ladder(OURS, step(0.0, 0.0)), num_nodes=2) == (0.0, 0.0)


def test_a_step_counts_who_served_and_how_busy_they_were() -> None:
    answers = [Answer(Ask(0.0, 10, 2), [1.0, 2.0], ("a", "b")), Answer(Ask(0.5, 10, 2), error="no_capacity")]
    result = played(answers, Load(1.0, 1.0, 0.0), {"a": 1.0, "b": 0.5}, 0.3)
    assert result.served == {"a": 1, "b": 1}
    assert result.busy_share == {"a": 0.5, "b": 0.25}
    assert (result.num_errors, result.summary.num_whole) == (1, 1)


def test_a_ladder_doubles_the_rate_at_each_step(tmp_path: object) -> None:
    effort = Effort(1, 30.0, tmp_path, tmp_path)  # type: ignore[arg-type]
    assert [load.requests_per_s for load in rising(effort, Load(0.5, 99.0), 3)] == [0.5, 1.0, 2.0]
    assert {load.duration_s for load in rising(effort, Load(0.5, 99.0), 3)} == {30.0}
