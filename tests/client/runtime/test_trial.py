"""Own products against usual ones: right first, then faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from client.runtime import trial
from client.runtime.trial import is_faster
from tests.client.runtime.recording import EagerRecorder

RESULT = torch.ones(4)


def usual() -> Tensor:
    return RESULT


def no_kernel() -> Tensor:
    raise RuntimeError("no kernel for this card\nand more")


@pytest.mark.parametrize(("own_s", "is_taken"), [(0.5, True), (2.0, False)])
def test_a_right_product_is_judged_by_its_time(own_s: float, is_taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([own_s, 1.0])
    monkeypatch.setattr(trial, "time_s", lambda *_: next(times))
    assert is_faster(lambda: RESULT + 1e-4, usual, "1 row", EagerRecorder()) is is_taken


@pytest.mark.expected_logs("no own product of 1 row: ValueError: its result is another")
def test_a_wrong_product_is_not_timed() -> None:
    assert not is_faster(lambda: 1.1 * RESULT, usual, "1 row", EagerRecorder())


@pytest.mark.expected_logs("no own product of 1 row: RuntimeError: no kernel for this card")
def test_a_product_that_fails_leaves_the_usual_one() -> None:
    assert not is_faster(no_kernel, usual, "1 row", EagerRecorder())
