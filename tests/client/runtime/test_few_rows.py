"""Own products of few rows: taken where they are right and faster, for as many rows as they were tried with."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from client.runtime import trial
from client.runtime.decode_graphs import Replay
from client.runtime.few_rows import FEW_ROWS, FewRowsLinear, adopt
from tests.client.runtime.recording import EagerRecorder

HAS_INTERPRETER = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Linear(24, 64), nn.Linear(64, 32, bias=False), nn.Linear(32, 5))
    return layers.to(dtype).requires_grad_(False)


class Product:
    """F.linear that remembers for how many rows it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.rows: list[int] = []
        self.factor = factor

    def __call__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.rows.append(hidden.numel() // hidden.shape[-1])
        return F.linear(hidden, weight, bias) * self.factor


def judge(monkeypatch: pytest.MonkeyPatch, own_s: float) -> None:
    """The library takes a second, our own product `own_s`: the first of two that are timed."""
    times: list[float] = []

    def time_s(replay: Replay, recorder: object) -> float:
        times.append(1.0)
        return own_s if len(times) % 2 else 1.0

    monkeypatch.setattr(trial, "time_s", time_s)


def test_a_faster_product_takes_the_rows_that_it_was_tried_with(monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, 0.5)
    layers, product = model(), Product()
    assert adopt([layers], product, EagerRecorder()) == 2
    product.rows.clear()
    for num_rows in (1, 2, FEW_ROWS, FEW_ROWS + 1):
        layers(torch.randn(1, num_rows, 24).bfloat16())
    assert product.rows == [1, 1, 2, 2, FEW_ROWS, FEW_ROWS]


def test_a_slower_product_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, 2.0)
    layers, product = model(), Product()
    assert adopt([layers], product, EagerRecorder()) == 0
    product.rows.clear()
    layers(torch.randn(1, 1, 24).bfloat16())
    assert product.rows == []


@pytest.mark.expected_logs("its result is another")
def test_a_wrong_product_is_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, 0.5)
    assert adopt([model()], Product(1.1), EagerRecorder()) == 0


@pytest.mark.expected_logs("no compiler")
def test_a_product_that_fails_is_not_taken() -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no compiler")

    layers = model()
    wanted = layers(torch.ones(2, 24).bfloat16())
    assert adopt([layers], fails, EagerRecorder()) == 0
    assert torch.equal(layers(torch.ones(2, 24).bfloat16()), wanted)


def test_odd_shapes_and_other_dtypes_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, 0.5)
    layers, single = model(), model(torch.float32)
    adopt([layers, single], Product(), EagerRecorder())
    assert [type(one) is FewRowsLinear for one in layers.children()] == [True, True, False]
    assert [type(one) is FewRowsLinear for one in single.children()] == [False, False, False]


def test_weights_are_the_very_same_tensors() -> None:
    linear = nn.Linear(8, 32)
    made = FewRowsLinear.of(linear)
    assert made.weight is linear.weight
    assert made.bias is linear.bias


@pytest.mark.skipif(not HAS_INTERPRETER, reason="needs triton and TRITON_INTERPRET=1")
@pytest.mark.parametrize("depth", [40, 1024])
@pytest.mark.parametrize("num_rows", [1, 2, FEW_ROWS])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_kernels_multiply(with_bias: bool, num_rows: int, depth: int) -> None:
    from client.runtime.few_rows_kernels import multiply_few_rows

    hidden, weight = torch.randn(1, num_rows, depth).half(), torch.randn(64, depth).half()
    bias = torch.randn(64).half() if with_bias else None
    found, wanted = multiply_few_rows(hidden, weight, bias), F.linear(hidden, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=2e-1)
