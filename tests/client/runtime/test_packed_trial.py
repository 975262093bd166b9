"""Own products with packed weights: taken up to as many rows as they are right and faster for."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor, nn

from client.runtime import trial
from client.runtime.packed_layers import MAX_OWN_ROWS, PackedLinear, dense_product
from client.runtime.packed_trial import adopt_packed
from client.runtime.packing import PackedWeight, pack
from protocol.values import Quantisation
from tests.client.runtime.recording import EagerRecorder

HAS_INTERPRETER = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's interpreter


def model() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Linear(64, 128), nn.Linear(128, 40)]
    return nn.Sequential(*(PackedLinear.of(layer, Quantisation.INT4) for layer in layers))


class Product:
    """The dense product, times `factor`; remembers for how many rows it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.rows: list[int] = []
        self.factor = factor

    def __call__(self, hidden: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        self.rows.append(hidden.numel() // hidden.shape[-1])
        return dense_product(hidden, weight, bias) * self.factor


@pytest.mark.parametrize("most", [16, MAX_OWN_ROWS])
def test_a_faster_product_takes_steps_of_up_to_the_rows_that_it_is_faster_for(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, calls = Product(), [0]

    def time_s(replay: object, recorder: object) -> float:
        calls[0] += 1
        is_own = calls[0] % 2 == 1
        return 1.0 if not is_own else 0.5 if product.rows[-1] <= most else 2.0

    monkeypatch.setattr(trial, "time_s", time_s)
    layers = model()
    assert adopt_packed([layers], product, EagerRecorder()) == 1, "the second has too few columns"
    product.rows.clear()
    for num_rows in (1, most, most + 1):
        layers(torch.randn(1, num_rows, 64))
    assert product.rows == [1, most]


@pytest.mark.expected_logs("its result is another")
def test_a_wrong_product_is_not_taken() -> None:
    layers = model()
    assert adopt_packed([layers], Product(1.1), EagerRecorder()) == 0
    assert torch.isfinite(layers(torch.randn(1, 1, 64))).all()


@pytest.mark.skipif(not HAS_INTERPRETER, reason="needs Triton, interpreted")
@pytest.mark.parametrize("kind", list(Quantisation))
@pytest.mark.parametrize(("num_rows", "depth"), [(1, 64), (1, 896), (3, 896), (20, 96), (100, 64)])
def test_the_kernels_give_the_dense_product(kind: Quantisation, num_rows: int, depth: int) -> None:
    from client.runtime.packed_kernels import multiply_packed

    torch.manual_seed(3)
    weight, bias = pack(torch.randn(64, depth), kind), torch.randn(64)
    hidden = torch.randn(1, num_rows, depth)
    torch.testing.assert_close(
        multiply_packed(hidden, weight, bias), dense_product(hidden, weight, bias), rtol=1e-3, atol=1e-3
    )
