"""That the timings run, and are of something."""

from __future__ import annotations

from benchmarks.scheduling.speed import measure, table, timed, timing


def test_every_figure_is_there_and_of_a_pool_that_serves() -> None:
    timings = measure(sizes=(24,), num_runs=1, num_requests=3, num_exact=1)
    names = " ".join(t.what for t in timings)
    assert all(part in names for part in ("phase 1", "repair, one left", "repair, one came", "phase 2"))
    assert all(t.p50_ms > 0.0 for t in timings)
    assert all(not t.note.startswith("0 lanes") for t in timings)
    assert table(timings).count("\n") == len(timings) + 1


def test_the_first_run_does_not_count() -> None:
    runs: list[int] = []
    assert len(timed(lambda: runs.append(1), 3)) == 3
    assert len(runs) == 4


def test_a_timing_is_the_median_and_the_ninth_decile() -> None:
    found = timing("x", 1, [float(n) for n in range(11)])
    assert (found.p50_ms, found.p90_ms) == (5.0, 9.0)
