"""Each row once, for seconds: real processes, real faults, right answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.endurance import kills as kills_row
from benchmarks.endurance import load, soak
from benchmarks.endurance.report import RowResult


def unmet(result: RowResult, *beginnings: str) -> list[str]:
    """The aims that begin so and are not met; there is at least one of each."""
    chosen = [aim for aim in result.aims if aim.measure.startswith(beginnings)]
    assert len(chosen) >= len(beginnings)
    return [f"{aim.measure}: {aim.found}" for aim in chosen if not aim.is_met]


def test_answers_stay_right_while_nodes_and_lines_fail(tmp_path: Path) -> None:
    result = soak.soak(soak.Effort(0.25, 1, tmp_path, fault_every_s=0.5))
    assert not unmet(result, "answers changed", "wrong rows", "defects"), result.raw
    assert result.raw["tally"]["ends"]["right"]
    assert len(result.raw["faults"]) > 3


def test_answers_survive_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    result = kills_row.kills(kills_row.Effort(3, 2, tmp_path))
    assert not unmet(result, "answers changed", "answers lost", "loads of weights", "defects"), result.raw
    assert result.raw["tally"]["num_come_back"]


def test_streams_of_simulated_nodes_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STREAMS_RAMP_S", 1.0)
    result = load.streams(load.Effort(5, 2.0, tmp_path))
    assert not unmet(result, "streams held", "answers right"), result.raw


def test_simulated_nodes_come_back_with_what_they_hold(tmp_path: Path) -> None:
    result = load.nodes(load.Effort(12, 2.0, tmp_path))
    assert not unmet(result, "nodes back", "… weights loaded"), result.raw
