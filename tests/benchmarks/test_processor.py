"""The page of rows that were measured one by one, each with its machine."""

from __future__ import annotations

from benchmarks.processor import ROWS, Rows, _page


def test_the_page_has_the_lines_of_all_rows_in_one_table_and_says_where_each_was_measured() -> None:
    text = _page([Rows("engine", "machine A", ("| one | 1 |",)), Rows("pool", "machine B", ("| two | 2 |",))])
    assert "|---|---|---|---|---|\n| one | 1 |\n| two | 2 |\n" in text
    assert "- engine: machine A\n- pool: machine B\n" in text
    assert set(ROWS) == {"engine", "pool", "memory"}
