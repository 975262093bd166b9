"""The parts of the wiring that decide something."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from coordinator import app
from coordinator.config import ConfigError
from protocol.values import Sampling


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({}, Sampling(1.0, 1.0, 0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, Sampling(0.7, 0.8, 20)),
        ({"temperature": 0.7, "do_sample": False}, Sampling(0.0, 1.0, 0)),
        ({"temperature": 99, "top_p": 7, "top_k": -1}, Sampling(2.0, 1.0, 0)),
        ({"temperature": "hot", "top_p": None}, Sampling(1.0, 1.0, 0)),
        ({"top_p": 0}, Sampling(1.0, 1.0, 0)),
    ],
)
def test_the_makers_recommendation_is_the_default_as_far_as_it_is_one(
    config: dict[str, Any], sampling: Sampling, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert app.default_sampling(tmp_path) == sampling


@pytest.mark.parametrize("content", [None, "not JSON"])
def test_without_a_recommendation_it_is_openais_default(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    assert app.default_sampling(tmp_path) == Sampling(1.0, 1.0, 0)


def test_a_port_is_taken_before_the_slow_work_and_refused_by_number_when_in_use() -> None:
    with app.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            app.bind("127.0.0.1", port)


@pytest.mark.expected_logs("the hub failed")
async def test_a_hub_that_dies_takes_the_coordinator_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)

    async def fail() -> None:
        raise RuntimeError("a defect")

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    app._stop_if_it_failed(task)
    assert raised == [signal.SIGTERM]


async def test_a_hub_that_is_stopped_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "raise_signal", lambda number: pytest.fail("nothing failed"))
    task = asyncio.create_task(asyncio.sleep(3600))
    task.cancel()
    await asyncio.wait({task})
    app._stop_if_it_failed(task)


@pytest.mark.parametrize(("done", "total", "shown"), [(5, 5, "hashing: 0 of 0 MB"), (0, 0, "hashing"), (1, 5, "")])
def test_progress_is_one_line_per_step_where_there_is_no_terminal(
    done: int, total: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app.show_progress("hashing", done, total)
    assert capsys.readouterr().err.strip() == shown
