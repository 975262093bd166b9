"""Scenario files are read strictly; every mistake is named in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.simulate.errors import ScenarioError
from coordinator.simulate.scenario import MassLeave, Outage, parse_scenario, preset, preset_names, read_scenario

GOOD = """
name = "x"
[[models]]
name = "llama3-8b"
[pool]
num_nodes = 3
mix = { "rtx4090-24g" = 1 }
[traffic]
requests_per_s = 1
"""


def complaint(text: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "x.toml")
    assert str(caught.value).startswith("x.toml")
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_a_short_file_is_enough_and_the_rest_is_default() -> None:
    scenario = parse_scenario(GOOD)
    assert scenario.pool.num_nodes == 3
    assert scenario.bound.tpot_s == 0.25
    assert scenario.churn is None


@pytest.mark.parametrize("name", preset_names())
def test_every_scenario_that_comes_with_the_program_can_be_read(name: str) -> None:
    assert preset(name).name == name
    assert preset(name).description


def test_the_wanted_scenarios_come_with_the_program() -> None:
    wanted = {"lan-8b-10", "wan-70b-64", "wan-400b-256", "volunteers-1000", "outage", "half-leave"}
    assert wanted <= set(preset_names())
    assert isinstance(preset("outage").happenings[0], Outage)
    assert isinstance(preset("half-leave").happenings[0], MassLeave)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("num_nodes = 3", "num_nodes = 0", "pool.num_nodes: expected `int` >= 1"),
        ("num_nodes = 3", "num_nodes = 'many'", "pool.num_nodes: expected `int`, got `str`"),
        ("num_nodes = 3", "", "pool.num_nodes is missing"),
        ("num_nodes = 3", "num_nodes = 3\nnodes = 4", "pool.nodes is no setting"),
        ("rtx4090-24g", "rtx4090", "did you mean rtx4090-24g?"),
        ("llama3-8b", "llama3-9b", "did you mean llama3-8b?"),
        ("requests_per_s = 1", "requests_per_s = -1", "traffic.requests_per_s: expected `float` >= 0"),
        ("requests_per_s = 1", "requests_per_s = 1\narrivals = 'often'", "traffic.arrivals: invalid"),
        ("requests_per_s = 1", "requests_per_s = 1\nlengths = 'sharegtp'", "did you mean sharegpt?"),
        ('name = "x"', 'name = "x"\nwarm_up_s = 2000', "warm_up_s must be shorter"),
        ('mix = { "rtx4090-24g" = 1 }', "mix = {}", "pool.mix names no device"),
        ('name = "x"', "name = ", "is not valid TOML"),
        (
            "[traffic]",
            "[[happenings]]\nkind = 'flood'\nat_s = 1\n[traffic]",
            "happenings[0].kind: invalid value 'flood'",
        ),
    ],
)
def test_a_mistake_is_named(before: str, after: str, sentence: str) -> None:
    assert sentence in complaint(GOOD.replace(before, after, 1))


def test_an_outage_needs_a_region_of_the_pool() -> None:
    outage = "[[happenings]]\nkind = 'outage'\nat_s = 1\nlength_s = 2\nregion = 'tokyo'\n"
    assert "happenings.region: 'tokyo' is not known" in complaint(GOOD + outage)


def test_a_model_is_served_once() -> None:
    assert "twice" in complaint(GOOD.replace("[pool]", '[[models]]\nname = "llama3-8b"\n[pool]'))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="Cannot read"):
        read_scenario(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="must be UTF-8"):
        read_scenario(tmp_path / "bytes.toml")


def test_an_unknown_preset_suggests_a_known_one() -> None:
    with pytest.raises(ScenarioError, match="did you mean outage"):
        preset("outages")


def test_a_scenario_can_be_shortened_and_given_another_rate() -> None:
    scenario = parse_scenario(GOOD).at_rate(7.0).lasting(100.0)
    assert scenario.traffic.requests_per_s == 7.0
    assert scenario.duration_s == 100.0
    assert scenario.warm_up_s == 25.0
