"""`decentllm-coordinator simulate`: a table, and a folder of plots and figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from coordinator.simulate import command, engine
from coordinator.simulate.errors import ScenarioError
from tests.coordinator.simulate.plain_scheduler import PlainScheduler

TOML = """
name = "tiny"
duration_s = 60
warm_up_s = 5
[[models]]
name = "llama3-8b-4bit"
[pool]
num_nodes = 2
mix = { "rtx4090-24g" = 1 }
[traffic]
requests_per_s = 0.5
"""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_scheduler", lambda scenario, policy: PlainScheduler())


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return str(path)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["simulate", *words])


def simulate(*words: str) -> int:
    arguments = parsed(*words)
    return int(arguments.run(arguments))


def test_a_table_is_printed(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(file) == 0
    assert "goodput, tokens/s" in capsys.readouterr().out


def test_a_folder_gets_plots_and_figures(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(file, "--out", str(tmp_path / "out"), "--seed", "7", "--hours", "0.02", "--rate", "1") == 0
    found = json.loads((tmp_path / "out" / "outcome-ours.json").read_text())
    assert (found["seed"], found["duration_s"], found["requests_per_s"]) == (7, 72.0, 1.0)
    assert (tmp_path / "out" / "map-ours.png").exists()
    assert "wrote" in capsys.readouterr().out


def test_scenarios_that_come_with_the_program_have_names() -> None:
    arguments = parsed("lan-8b-10", "--hours", "0.05")
    assert command._scenario(arguments).name == "lan-8b-10"


def test_mistakes_are_errors_with_a_sentence() -> None:
    with pytest.raises(ScenarioError, match="did you mean"):
        simulate("lan-8b-11")
    with pytest.raises(ScenarioError, match="Cannot read"):
        simulate("none.toml")


@pytest.mark.parametrize("words", [("--seed", "-1"), ("--hours", "0"), ("--rate", "x"), ("--policy", "other")])
def test_arguments_are_checked(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("lan-8b-10", *words)
    assert words[1] in capsys.readouterr().err
