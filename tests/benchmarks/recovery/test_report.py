from __future__ import annotations

from pathlib import Path

from benchmarks.recovery.counting import Tally
from benchmarks.recovery.report import BY_HAND, Aim, RecoveryRow, by_hand, finished, keep, kept, page

ROW = RecoveryRow(
    "kill", "A node dies.", (Aim("gap", "under 1 s", "0.5 s", True),), Tally(30, 29), (("a",), ("1",)), {"x": 1.5}
)
WORSE = RecoveryRow(
    "hang", "It stops.", (Aim("hang", "under 1 s", "2 s", False),), Tally(10, 10, 1, 2, 3), (("b",),), {}
)


def test_a_row_is_read_as_it_was_kept(tmp_path: Path) -> None:
    keep(ROW, tmp_path)
    assert kept(["missing", "kill"], tmp_path) == [ROW]


def test_the_first_line_of_the_table_is_the_sum_of_what_went_wrong() -> None:
    lines = page([ROW, WORSE], "").splitlines()
    first = next(line for line in lines if line.startswith("| answers lost"))
    assert "6 of 40 (39 of them hit by a fault)" in first
    assert "missed" in first
    assert "| gap | under 1 s | 0.5 s | met |" in lines
    assert "| hang | under 1 s | 2 s | **missed** |" in lines


def test_what_was_not_measured_is_not_met() -> None:
    assert "| not measured |" in page([], "")


def test_each_row_has_its_command_and_machine() -> None:
    text = page([finished(ROW, "python -m benchmarks.recovery kill --seed 1")], "")
    assert "`python -m benchmarks.recovery kill --seed 1`" in text
    assert "cores" in text


def test_what_was_written_by_hand_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    assert by_hand(path) == ""
    path.write_text(page([ROW], "Why it took so long.\n"), encoding="utf-8")
    assert by_hand(path) == "Why it took so long.\n"
    path.write_text(page([ROW, WORSE], by_hand(path)), encoding="utf-8")
    assert by_hand(path) == "Why it took so long.\n"
    assert path.read_text(encoding="utf-8").count(BY_HAND) == 1
