"""Lines through samples of memory and handles."""

from __future__ import annotations

import os

import pytest

from benchmarks.endurance.watching import Sample, Watched, num_handles, percentile, rss_bytes, slope


def watched(*rss_mb: float, handles: int = 7) -> Watched:
    return Watched("p", 1, [Sample(float(at), int(mb * 1e6), handles) for at, mb in enumerate(rss_mb)])


def test_a_leak_has_its_slope_and_the_warm_up_does_not_count() -> None:
    trend = watched(*([0.0] * 20), *(100.0 + number for number in range(20))).trend(20.0)
    assert trend is not None
    assert trend.mb_per_hour == pytest.approx(3600.0)
    assert trend.handles_per_hour == 0.0
    assert (trend.first_mb, trend.last_mb, trend.seconds) == (101.5, 117.5, 19.0)


def test_a_few_samples_make_no_trend() -> None:
    assert watched(1.0, 2.0, 3.0).trend(0.0) is None
    assert Watched("p", 1).trend(0.0) is None


def test_this_process_has_memory_and_handles() -> None:
    before = num_handles(os.getpid())
    reading, writing = os.pipe()
    assert num_handles(os.getpid()) == before + 2
    os.close(reading)
    os.close(writing)
    assert rss_bytes(os.getpid()) > 10**6


def test_a_process_that_has_gone_leaves_no_sample() -> None:
    gone = Watched("p", 2**22 + 1)
    gone.look(0.0)
    assert not gone.samples


def test_percentiles_and_slopes_of_nothing_are_nothing() -> None:
    assert percentile([], 99) == 0.0
    assert slope([1.0, 1.0], [1.0, 2.0]) == 0.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
