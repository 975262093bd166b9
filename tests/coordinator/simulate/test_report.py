"""A table for people, JSON for programs."""

from __future__ import annotations

import json

from coordinator.simulate.report import aligned, table, to_json
from tests.coordinator.simulate import pools

OUTCOME = pools.run(pools.scenario(2, 0.5))


def test_the_table_has_a_column_per_outcome_and_says_what_counts() -> None:
    lines = table([OUTCOME, OUTCOME]).splitlines()
    goodput = next(line for line in lines if line.startswith("goodput"))
    assert goodput.count(f"{OUTCOME.goodput_tokens_per_s:,.1f}") == 2
    assert any(line.startswith("TPOT") for line in lines)
    assert any(line.startswith("GB moved: re-plan") for line in lines)


def test_columns_are_aligned() -> None:
    assert aligned([("a", "1"), ("long", "100")]) == "a       1\nlong  100"
    assert aligned([]) == ""
    assert table([]) == ""


def test_the_json_has_every_figure_the_series_and_the_map() -> None:
    found = json.loads(to_json(OUTCOME))
    assert found["goodput_tokens_per_s"] == OUTCOME.goodput_tokens_per_s
    assert len(found["series"]) == len(OUTCOME.series) > 10
    assert found["held"][0]["stop"] == 32
