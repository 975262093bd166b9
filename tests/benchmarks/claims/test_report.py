from __future__ import annotations

from pathlib import Path

from benchmarks.claims.report import Kind, RowResult, finished, keep, kept, markdown_table, page

RESULT = RowResult("row", Kind.EMULATED, "It works.", "It did.", 7, (("a", "b"), ("1", "2")), {"x": 1.5})


def test_a_result_is_read_as_it_was_kept(tmp_path: Path) -> None:
    keep(RESULT, tmp_path)
    assert kept(["missing", "row"], tmp_path) == [RESULT]


def test_a_table_has_its_head_first() -> None:
    assert markdown_table(RESULT.table) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_page_says_of_each_row_where_it_comes_from_and_how_to_measure_it_again() -> None:
    text = page([finished(RESULT)], "Notes.")
    assert "## row" in text
    assert "Emulated" in text
    assert "`python -m benchmarks.claims row --seed 7`" in text
    assert "cores" in text, "the machine"
