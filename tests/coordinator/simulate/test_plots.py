"""Pictures are written where one asks for them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from coordinator.simulate.errors import ScenarioError
from coordinator.simulate.plots import write_plots
from tests.coordinator.simulate import pools

PNG = b"\x89PNG"


def test_three_kinds_of_plots_are_written(tmp_path: Path) -> None:
    outcome = pools.run(pools.scenario(3, 0.5), 16)
    paths = write_plots([outcome], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["map-plain.png", "latency.png", "throughput.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_an_outcome_without_any_answer_or_holder_can_be_drawn(tmp_path: Path) -> None:
    outcome = pools.run(pools.scenario(1, 0.0))
    assert len(write_plots([outcome], tmp_path)) == 3


def test_without_matplotlib_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ScenarioError, match="pip install matplotlib"):
        write_plots([], tmp_path)
