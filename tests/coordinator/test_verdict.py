"""Where the rows are says who holds them up: the rules as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.verdict import Cut, Hangs, HopReport, Silent, StageReport, Unknown, Verdict, Wait, judge

IDLE = StageReport(0.0, 0.5)
WORKS = StageReport(0.2, 0.5)
HANGS = StageReport(0.7, 0.5)
SILENT = StageReport(None, 0.5, is_silent=True)
ALIVE = StageReport(None, 0.5)
"""It has not answered, but its node said something else meanwhile."""
OLD = StageReport(None, 0.5, is_asked=False)
OLD_AND_SILENT = StageReport(None, 0.5, is_asked=False, is_silent=True)
FINE = HopReport(None, 0.5)
LATE = HopReport(0.6, 0.5)
UNDER_WAY = HopReport(0.0, 0.5)


@pytest.mark.parametrize(
    ("stages", "hops", "verdict"),
    [
        ([HANGS, IDLE, IDLE], [FINE] * 3, Hangs(0)),
        ([IDLE, IDLE, HANGS], [FINE] * 3, Hangs(2)),
        ([IDLE, HANGS, HANGS], [FINE] * 3, Hangs(1)),
        ([WORKS, HANGS], [FINE] * 2, Hangs(1)),
        ([SILENT, HANGS], [FINE] * 2, Hangs(1)),
        ([OLD, HANGS], [FINE] * 2, Hangs(1)),
        ([HANGS], [], Hangs(0)),
        ([WORKS, SILENT], [FINE] * 2, Wait(0.3)),
        ([StageReport(9.0, 10.0), IDLE], [FINE] * 2, Wait(1.0)),
        ([IDLE, SILENT], [FINE] * 2, Silent((1,))),
        ([SILENT, SILENT], [FINE] * 2, Silent((0, 1))),
        ([SILENT, IDLE, IDLE], [FINE, LATE, FINE], Silent((0,))),
        ([IDLE, IDLE], [LATE, FINE], Cut(0)),
        ([IDLE, IDLE], [FINE, LATE], Cut(1)),
        ([IDLE, IDLE], [UNDER_WAY, FINE], Wait(0.5)),
        ([WORKS, IDLE, IDLE], [FINE, LATE, FINE], Wait(0.3)),
        ([IDLE, IDLE], [FINE, FINE], Unknown()),
        ([IDLE, ALIVE], [FINE, FINE], Unknown()),
        ([IDLE, OLD, IDLE], [FINE] * 3, Unknown((1,))),
        ([OLD_AND_SILENT, OLD_AND_SILENT], [FINE] * 2, Unknown((0, 1))),
    ],
)
def test_the_first_rule_that_applies_decides(
    stages: list[StageReport], hops: list[HopReport], verdict: Verdict
) -> None:
    found = judge(stages, hops)
    if isinstance(verdict, Wait):
        assert isinstance(found, Wait)
        assert found.for_s == pytest.approx(verdict.for_s)
    else:
        assert found == verdict


reports = st.builds(
    StageReport,
    waiting_s=st.none() | st.floats(0.0, 100.0),
    limit_s=st.floats(0.5, 50.0),
    is_asked=st.booleans(),
    is_silent=st.booleans(),
)


@given(st.lists(reports, min_size=1, max_size=6))
def test_nobody_is_blamed_who_is_within_its_limit_or_cannot_be_asked(stages: list[StageReport]) -> None:
    verdict = judge(stages, [FINE] * len(stages))
    match verdict:
        case Hangs(stage):
            waiting_s = stages[stage].waiting_s
            assert waiting_s is not None
            assert waiting_s > stages[stage].limit_s
        case Silent(silent):
            assert all(stages[stage].is_asked and stages[stage].is_silent for stage in silent)
        case Wait(for_s):
            assert for_s >= 0.0
        case _:
            assert isinstance(verdict, Unknown)
