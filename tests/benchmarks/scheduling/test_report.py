"""The page says what was found, and names only what is there."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.scheduling.compare import Run
from benchmarks.scheduling.report import (
    BY_HAND,
    Printed,
    ablations_table,
    aims_table,
    latency_table,
    main,
    page,
    throughput_table,
)
from benchmarks.scheduling.scenarios import LOCAL, WIDE
from tests.benchmarks.scheduling.runs import OPTIMUM, SCENARIO, climbed, run, sums

REPOSITORY = Path(__file__).parents[3]


def tables() -> dict[str, dict[str, list[Run]]]:
    rivals: dict[str, dict[float, float]] = {
        "petals": {1: 100.0, 2: 100.0, 3: 50.0},
        "without-search": {1: 75.0},
        "petals+our-routing": {1: 50.0},
    }
    return {
        SCENARIO: {"ours": climbed("ours", {1: 150.0, 2: 250.0, 3: 0.0})}
        | {n: climbed(n, r) for n, r in rivals.items()}
    }


def whole_set(ours: float) -> dict[str, dict[str, list[Run]]]:
    """Every scenario, ours serving so many times what the other does."""
    names = [scenario.name for scenario in (*LOCAL, *WIDE)]
    return {
        name: {
            "ours": [run("ours", 1, 100 * ours, latency_s=5.0, scenario=name)],
            "petals": climbed("petals", {1: 100.0}, scenario=name),
        }
        for name in names
    }


def written(folder: Path, found: dict[str, dict[str, list[Run]]]) -> Path:
    for scenario, table in found.items():
        for policy, runs in table.items():
            text = "".join(json.dumps(asdict(one)) + "\n" for one in runs)
            (folder / f"{scenario}.{policy}.0.jsonl").write_text(text)
    return folder


def test_a_row_has_every_policy_the_best_other_the_ratio_and_the_number_of_seeds() -> None:
    head, _, row = throughput_table(tables()).splitlines()
    assert head == "| scenario | ours | petals | best other | ours / best other | seeds |"
    assert row == f"| {SCENARIO} | 250 | 100 | petals | 2.50 | 1 |"


def test_several_seeds_show_their_spread() -> None:
    table = {
        "ours": [run("ours", 1, 200, seed=0), run("ours", 1, 400, seed=1)],
        "petals": [run("petals", 1, 100, seed=0), run("petals", 1, 100, seed=1)],
    }
    row = throughput_table({SCENARIO: table}).splitlines()[2]
    assert row.endswith("| petals | 3.00 (2.00 to 4.00) | 2 |")
    assert latency_table({SCENARIO: table}).splitlines()[2].endswith("| 0 % (0 % to 0 %) | 2 | - |")


def test_who_finished_too_few_is_named_and_a_scenario_without_a_fair_rival_is_not_compared() -> None:
    table = tables()[SCENARIO] | {"random": [run("random", 1, 5, latency_s=0.1, num_finished=50)]}
    assert latency_table({SCENARIO: table}).splitlines()[2].endswith("| 1 | random |")
    alone = {"ours": table["ours"], "random": table["random"]}
    assert latency_table({SCENARIO: alone}).endswith(f"finished too few there: {SCENARIO}.")


def test_an_aim_is_met_on_the_whole_set_only() -> None:
    rows = aims_table(whole_set(ours=2.5)).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["2.50x", "2.50x", "50 %"]
    assert all(row.endswith("| met |") for row in rows)
    part = {name: table for name, table in whole_set(ours=2.5).items() if name != SCENARIO}
    rows = aims_table(part).splitlines()[2:]
    assert all(row.endswith(f"(without {SCENARIO}) | met on those compared |") for row in rows)


def test_a_missed_aim_is_said_with_its_worst_and_best_scenario() -> None:
    found = whole_set(ours=1.5)
    found[SCENARIO]["ours"] = climbed("ours", {1: 90.0})
    first, second, third = aims_table(found).splitlines()[2:]
    assert first.endswith("| missed |")
    assert f"0.90x ({SCENARIO}) | 1.50x (" in first
    assert second.endswith("| missed |")
    assert third.endswith("| met |")


def test_a_scenario_where_no_other_served_anything_is_in_no_mean() -> None:
    found = whole_set(ours=3.0)
    found[SCENARIO]["petals"] = climbed("petals", {1: 0.0})
    assert f"3.00x ({WIDE[0].name})" in aims_table(found)
    assert f"7 of 8 (without {SCENARIO})" in aims_table(found)


def test_ablations_are_shown_as_parts_of_ours() -> None:
    assert ablations_table(tables(), ["without-search"]).splitlines()[2] == "| without-search | 75 (30 %) |"
    assert ablations_table(tables(), []) == ""
    text = page(tables(), Printed(), "a machine", REPOSITORY / "docs" / "none.md")
    assert "| without-search | 75 (30 %) |" in text
    assert "| petals+our-routing | 50 (20 %) |" in text


def test_pictures_are_shown_only_if_they_are_there(tmp_path: Path) -> None:
    assert "![" not in page(tables(), Printed(), "a machine", tmp_path / "scheduling.md")
    (tmp_path / "scheduling").mkdir()
    for name in ("goodput.png", "map-ours.png"):
        (tmp_path / "scheduling" / name).touch()
    text = page(tables(), Printed(), "a machine", tmp_path / "scheduling.md")
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert links == ["scheduling/goodput.png", "scheduling/map-ours.png"]


def test_the_page_names_only_files_that_exist() -> None:
    text = page(tables(), Printed(OPTIMUM, "", "| a |"), "a machine", REPOSITORY / "docs" / "scheduling.md")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all((REPOSITORY / "docs" / link).exists() for link in links)
    paths = [name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name]
    assert len(paths) >= 3
    assert all((REPOSITORY / name).exists() for name in paths)
    modules = re.findall(r"python -m ([\w.]+)", text)
    sources = [REPOSITORY / module.replace(".", "/") for module in modules]
    assert all(source.with_suffix(".py").exists() or source.is_dir() for source in sources)


def test_writing_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    folder, path = written(tmp_path, tables()), tmp_path / "page.md"
    assert main([str(folder), "--write"], path) == 0
    assert path.read_text().endswith(f"```\n\n{BY_HAND}\n")
    path.write_text(path.read_text() + "\nWhy the aim is out of reach.\n")
    assert main([str(folder), "--write"], path) == 0
    assert path.read_text().endswith(f"```\n\n{BY_HAND}\n\nWhy the aim is out of reach.\n")


def test_a_section_of_another_command_stays_until_that_command_has_been_run_again(tmp_path: Path) -> None:
    folder, path, printed = written(tmp_path, tables()), tmp_path / "page.md", tmp_path / "printed"
    printed.write_text("| a |\n|---|\n| once |\n")
    assert main([str(folder), "--changes", str(printed), "--speed", str(printed), "--write"], path) == 0
    before = path.read_text()
    assert main([str(folder), "--write"], path) == 0
    assert path.read_text() == before
    printed.write_text("| a |\n|---|\n| again |\n")
    assert main([str(folder), "--changes", str(printed), "--write"], path) == 0
    after = path.read_text()
    assert (before.count("| once |"), after.count("| once |"), after.count("| again |")) == (2, 1, 1)


def test_files_of_other_commands_are_taken_in_and_named_among_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = tmp_path / "printed"
    printed.write_text(OPTIMUM + sums(2, 0.0, 0.0))
    assert main([str(written(tmp_path, tables())), "--optimum", str(printed)]) == 0
    text = capsys.readouterr().out
    assert "## Distance from the exact optimum" in text
    assert "python -m benchmarks.scheduling.optimum > optimum.txt" in text
    assert "Seeds: 0" in text


def test_a_folder_without_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "No scenario" in capsys.readouterr().err
