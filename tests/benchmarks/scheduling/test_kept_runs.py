"""Published runs: packed by scenario, unpacked by policy, nothing lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scheduling.compare import Book
from benchmarks.scheduling.kept_runs import pack, unpack, work_name
from tests.benchmarks.scheduling.runs import run

RUNS = [("wan", "ours", 2.0), ("wan", "ours", 1.0), ("wan", "petals", 1.0), ("lan", "ours", 3.0)]


def write(folder: Path) -> None:
    for scenario, policy, rate in RUNS:
        Book(folder / work_name(scenario, policy, 0)).add(run(policy, rate, 5.0, scenario=scenario))


def test_a_scenario_is_one_file_in_order(tmp_path: Path) -> None:
    write(tmp_path)
    pack(tmp_path, tmp_path / "results", ["wan", "nothing of this"])
    [path] = (tmp_path / "results").iterdir()
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["policy"], r["requests_per_s"]) for r in runs] == [("ours", 1.0), ("ours", 2.0), ("petals", 1.0)]


def test_what_was_packed_is_found_by_policy(tmp_path: Path) -> None:
    write(tmp_path)
    pack(tmp_path, tmp_path / "results", ["wan", "lan"])
    other = tmp_path / "other"
    other.mkdir()
    unpack(tmp_path / "results", other)
    for scenario, policy, rate in RUNS:
        assert Book(other / work_name(scenario, policy, 0)).find(scenario, policy, 0, rate) is not None


def test_work_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    pack(tmp_path, tmp_path / "results", ["wan"])
    path = tmp_path / work_name("wan", "ours", 0)
    Book(path).add(run("ours", 9.0, 5.0, scenario="wan"))
    unpack(tmp_path / "results", tmp_path)
    assert len(Book(path).runs) == 3
