"""The page: made from results, with what was written by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.endurance.report import MARKER, Aim, RowResult, keep, kept, page


def row(name: str, *, is_met: bool = True) -> RowResult:
    aims = (Aim("answers lost", "0", "0" if is_met else "2", is_met),)
    return RowResult(
        name, name.title(), "What it is.", f"run {name}", aims, (("what", "number"),), {"n": 1}, "a machine"
    )


def test_results_are_kept_and_read_again_in_the_order_asked_for(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep(row(name), tmp_path)
    assert [result.name for result in kept(["two", "none", "one"], tmp_path)] == ["two", "one"]


def test_what_is_written_by_hand_stays_when_the_page_is_made_again() -> None:
    first = page([row("one")], "")
    by_hand = f"{first}\n## What is known\n\nA sentence.\n"
    second = page([row("one", is_met=False)], by_hand)
    assert second.endswith(f"{MARKER}\n\n## What is known\n\nA sentence.\n")
    assert "| answers lost | 0 | 2 | **no** |" in second
    assert page([row("one", is_met=False)], second) == second
