"""The shortest time to a whole chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scheduling.soonest import EXACT_S, MOST_DEVICES, Holder, Sources, soonest_s
from coordinator.scheduler.problems import fit_of
from tests.fakes.problem_facts import offer, problem

PROBLEM = problem()
MODEL, FIT = PROBLEM.model, fit_of(PROBLEM)
LAYER_BYTES = MODEL.weights[1]
FAR = Sources(mirror_bytes_per_s=1e3 * LAYER_BYTES, load_bytes_per_s=1e9 * LAYER_BYTES)
ENDS = (-1, -2)


def holder(number: int, room: int, disk: range, line: float = 1.0) -> Holder:
    """`line`: layers per second. Ends are on every disk."""
    return Holder(offer(number, room), {*disk, *ENDS}, line * LAYER_BYTES)


def soonest(*holders: Holder, sources: Sources = FAR) -> float | None:
    return soonest_s(MODEL, FIT, holders, sources)


def test_what_is_on_disk_takes_no_time() -> None:
    assert soonest(holder(1, 12, range(12)), holder(2, 12, range(12, 24))) == pytest.approx(0.0, abs=2 * EXACT_S)


def test_downloads_run_side_by_side_and_the_longest_counts() -> None:
    both = (holder(1, 24, range(8)), holder(2, 24, range(16, 24)))
    assert soonest(*both) == pytest.approx(4.0, abs=0.2), "eight layers are missing, four for each"


def test_the_quicker_line_takes_more() -> None:
    both = (holder(1, 24, range(8), line=3.0), holder(2, 24, range(16, 24)))
    assert soonest(*both) == pytest.approx(2.0, abs=0.2)


def test_a_mirror_that_all_share_may_be_the_narrowest() -> None:
    shared = replace(FAR, mirror_bytes_per_s=LAYER_BYTES)
    assert soonest(holder(1, 24, range(8)), holder(2, 24, range(16, 24)), sources=shared) == pytest.approx(8.0, abs=0.2)


def test_who_has_no_memory_for_the_gap_must_leave_it_to_others() -> None:
    both = (holder(1, 8, range(8)), holder(2, 24, range(16, 24)))
    assert soonest(*both) == pytest.approx(8.0, abs=0.2)


def test_devices_that_do_not_suffice_have_no_time() -> None:
    assert soonest(holder(1, 8, range(8)), holder(2, 8, range(8))) is None
    assert soonest() is None


def test_too_many_devices_are_not_gone_through() -> None:
    assert soonest(*(holder(n, 24, range(24)) for n in range(1, MOST_DEVICES + 2))) is None


def test_what_is_loaded_need_not_be_loaded_again() -> None:
    slow = replace(FAR, load_bytes_per_s=LAYER_BYTES)
    some = holder(1, 24, range(24))
    assert soonest(some, sources=slow) == pytest.approx(24.0, abs=0.5)
    assert soonest(replace(some, held=(0, 24)), sources=slow) == pytest.approx(0.0, abs=0.5)
