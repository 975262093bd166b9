"""Pictures are written, small, and readable without colours."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.pictures import draw_goodput, draw_in_detail, main, styles
from benchmarks.scheduling.scenarios import SCENARIOS
from coordinator.simulate.errors import ScenarioError
from tests.benchmarks.scheduling.runs import climbed

PNG = b"\x89PNG"
MOST_BYTES = 150_000
SMALL = "lan-8b-10"


def test_no_two_lines_look_alike_without_their_colours() -> None:
    looks = styles(["ours", *POLICIES])
    plain = [(look["linestyle"], look.get("marker")) for look in looks.values()]
    assert len(set(plain)) == len(plain)
    assert all(looks["ours"]["linewidth"] > look["linewidth"] for name, look in looks.items() if name != "ours")


def test_every_scenario_fits_into_one_small_file(tmp_path: Path) -> None:
    rates = {float(rate): 100.0 * rate for rate in range(1, 9)}
    tables = {
        name: {policy: climbed(policy, rates, scenario=name) for policy in ("ours", *POLICIES)} for name in SCENARIOS
    }
    content = draw_goodput(tables, tmp_path / "goodput.png").read_bytes()
    assert content.startswith(PNG)
    assert len(content) < MOST_BYTES


def test_one_scenario_is_simulated_again_and_older_maps_go(tmp_path: Path) -> None:
    (tmp_path / "map-petals.png").touch()
    table = {name: climbed(name, {0.25: 5.0, 0.5: 10.0}, scenario=SMALL) for name in ("ours", "hexgen")}
    draw_in_detail(SMALL, table, tmp_path)
    names = ["latency.png", "map-hexgen.png", "map-ours.png", "throughput-at-our-best.png", "throughput.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())


def test_without_matplotlib_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ScenarioError, match="decentllm\\[plots\\]"):
        draw_goodput({}, tmp_path / "goodput.png")


def test_a_folder_without_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "No scenario" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
