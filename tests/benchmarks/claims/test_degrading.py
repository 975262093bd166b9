from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.claims.degrading import commonest, gaps_s, share_using, shift_of, stuttering
from benchmarks.claims.scene import Ask
from benchmarks.claims.users import Answer
from demo.local_pool import PoolFailed


def over(node: str, at_s: float, gap_s: float = 0.1) -> Answer:
    return Answer(Ask(at_s, 10, 3), [at_s + gap_s, at_s + 2 * gap_s, at_s + 3 * gap_s], nodes=(node,))


def uses_bad(chain: object) -> bool:
    return chain == ("bad",)


def test_the_load_has_shifted_after_the_last_window_that_used_what_got_worse() -> None:
    answers = [over("bad" if at_s < 26 else "good", float(at_s), 0.5 if 20 <= at_s < 26 else 0.1) for at_s in range(60)]
    shift = shift_of(answers, 20.0, 60.0, uses_bad)
    assert shift.shift_s == pytest.approx(8.0), "a window of 5 s that began 3 s after the change still had half of it"
    assert (shift.share_before, shift.share_after) == (1.0, 0.0)
    assert shift.gap_before_s == pytest.approx(0.1)
    assert shift.gap_at_s == pytest.approx(0.5)
    assert shift.gap_after_s == pytest.approx(0.1)


def test_a_load_that_never_shifts_has_no_time_to_shift() -> None:
    answers = [over("bad", float(at_s)) for at_s in range(60)]
    assert shift_of(answers, 20.0, 60.0, uses_bad).shift_s is None


def test_a_load_that_is_gone_at_once_took_no_time() -> None:
    answers = [over("bad" if at_s < 20 else "good", float(at_s)) for at_s in range(60)]
    assert shift_of(answers, 20.0, 60.0, uses_bad).shift_s == 0.0


def test_requests_without_a_chain_count_for_nothing() -> None:
    assert share_using([Answer(Ask(1.0, 10, 3), error="no_capacity"), over("bad", 1.0)], 0.0, 5.0, uses_bad) == 1.0
    assert share_using([], 0.0, 5.0, uses_bad) == 0.0


def test_gaps_belong_to_when_their_second_token_came() -> None:
    answer = Answer(Ask(0.0, 10, 3), [1.0, 1.5, 4.0])
    assert gaps_s([answer], 0.0, 2.0) == [0.5]
    assert gaps_s([answer], 2.0, 5.0) == [2.5]


def test_the_commonest_is_found_and_nothing_is_an_error() -> None:
    assert commonest(["a", "b", "b"]) == "b"
    with pytest.raises(PoolFailed):
        commonest([])


def test_a_stuttering_process_is_stopped_now_and_then_and_goes_on_afterwards() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        try:
            process = psutil.Process(child.pid)
            seen = set()
            with stuttering(process):
                deadline_s = time.monotonic() + 20.0
                while psutil.STATUS_STOPPED not in seen and time.monotonic() < deadline_s:
                    seen.add(process.status())
                    time.sleep(0.01)
            assert psutil.STATUS_STOPPED in seen
            assert process.status() != psutil.STATUS_STOPPED
        finally:
            child.kill()
