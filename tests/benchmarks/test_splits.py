"""What a further stage costs is told against the same model in one stage."""

from __future__ import annotations

from benchmarks.overhead import Sample
from benchmarks.splits import table


def test_each_row_says_what_a_further_stage_costs() -> None:
    found = {num: [Sample(ms, ms - 1.0), Sample(ms + 0.5, ms)] for num, ms in ((1, 2.0), (2, 3.0), (4, 6.5))}
    assert list(table(found))[2:] == [
        "| 1 | 2.25 | 1.50 |  |",
        "| 2 | 3.25 | 2.50 | 1.00 ms |",
        "| 4 | 6.75 | 6.00 | 1.50 ms |",
    ]
