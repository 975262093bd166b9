"""Own products with packed weights: taken up to as many rows as they are right and faster for."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor, nn

from client.runtime import trial
from client.runtime.packed_experts import ExpertBlocks, PackedExperts, blocks_of, gathered_product
from client.runtime.packed_layers import MAX_OWN_ROWS, PackedLinear, dense_product
from client.runtime.packed_trial import adopt_experts, adopt_packed
from client.runtime.packing import PackedWeight, pack
from protocol.values import Quantisation
from tests.client.runtime.chain import DEVICE
from tests.client.runtime.recording import EagerRecorder

HAS_TRITON = importlib.util.find_spec("triton") is not None
RUNS_KERNELS = HAS_TRITON and (os.environ.get("TRITON_INTERPRET") == "1" or DEVICE != "cpu")
MOST_FLOAT32_ROWS = 20
"""On a card: tiles of more rows of 32 bits do not fit its shared memory; a trial finds that out."""
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


@pytest.mark.skipif(not RUNS_KERNELS, reason="needs Triton, on a GPU or interpreted")
@pytest.mark.parametrize("kind", list(Quantisation))
@pytest.mark.parametrize(("num_rows", "depth"), [(1, 64), (1, 896), (3, 896), (20, 96), (100, 64)])
def test_the_kernels_give_the_dense_product(kind: Quantisation, num_rows: int, depth: int) -> None:
    from client.runtime.packed_kernels import multiply_packed

    if DEVICE != "cpu" and num_rows > MOST_FLOAT32_ROWS:
        pytest.skip("float32 tiles of so many rows do not fit the card")
    torch.manual_seed(3)
    weight, bias = pack(torch.randn(64, depth, device=DEVICE), kind), torch.randn(64, device=DEVICE)
    hidden = torch.randn(1, num_rows, depth, device=DEVICE)
    torch.testing.assert_close(
        multiply_packed(hidden, weight, bias), dense_product(hidden, weight, bias), rtol=1e-3, atol=1e-3
    )


class Experts(nn.Module):
    """As transformers lays a mixture of experts out, with biases and the matrices the other way round."""

    has_gate = has_bias = is_transposed = True
    has_post_expert_norm = False

    def __init__(self, num_experts: int = 5, hidden: int = 64, inner: int = 96) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.gate_up_proj = nn.Parameter(torch.randn(num_experts, hidden, 2 * inner) / 8)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(num_experts, 2 * inner))
        self.down_proj = nn.Parameter(torch.randn(num_experts, inner, hidden) / 8)
        self.down_proj_bias = nn.Parameter(torch.randn(num_experts, hidden))

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return torch.sigmoid(gate) * up


def routed(mixture: nn.Module, num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 64, generator=generator)
    chosen = torch.randint(0, 5, (num_tokens, 3), generator=generator)
    found: Tensor = mixture(hidden, chosen, torch.rand(num_tokens, 3, generator=generator))
    return found


class Products:
    """Both products of experts with dense copies, times `factor`; remembers for how many pairs each was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.asked: list[tuple[str, int]] = []
        self.factor = factor

    def pairs(self, rows: Tensor, weight: PackedWeight, experts: Tensor, bias: Tensor | None) -> Tensor:
        self.asked.append(("pairs", len(rows)))
        return gathered_product(rows, weight, experts, bias) * self.factor

    def blocks(self, rows: Tensor, weight: PackedWeight, blocks: ExpertBlocks, bias: Tensor | None) -> Tensor:
        num_pairs = len(blocks.order)
        self.asked.append(("blocks", num_pairs))
        experts = torch.full((num_pairs,), -1)
        for expert, first, count in blocks.table.tolist():
            assert 0 <= count <= blocks.num_rows
            mine = blocks.order[first : first + count].long()
            assert (experts[mine] == -1).all(), "each pair is in one block"
            experts[mine] = expert
        repeated = rows.repeat_interleave(num_pairs // len(rows), dim=0)
        return gathered_product(repeated, weight, experts, bias) * self.factor


@pytest.mark.parametrize("num_tokens", [1, 7, 40, 400])
def test_faster_products_of_experts_give_what_they_give_one_by_one(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, 2.0, 2.0, 1.0, 1.0, 2.0])  # blocks are faster; pairs with 256 are not, with 64 they are
    monkeypatch.setattr(trial, "time_s", lambda replay, recorder: next(times))
    mixture, products = PackedExperts(Experts(), Quantisation.INT4), Products()
    one_by_one = routed(mixture, num_tokens)
    assert adopt_experts([mixture], products.pairs, products.blocks, EagerRecorder()) == 1
    products.asked.clear()
    torch.testing.assert_close(routed(mixture, num_tokens), one_by_one, rtol=1e-4, atol=1e-5)
    assert products.asked == [("pairs" if 3 * num_tokens <= 64 else "blocks", 3 * num_tokens)] * 2


@pytest.mark.expected_logs("its result is another")
def test_wrong_products_of_experts_are_not_taken() -> None:
    mixture, products = PackedExperts(Experts(), Quantisation.INT8), Products(1.1)
    assert adopt_experts([mixture], products.pairs, products.blocks, EagerRecorder()) == 0
    assert mixture.max_own_pairs == 0 and mixture.multiply_blocks is None


@pytest.mark.skipif(not RUNS_KERNELS, reason="needs Triton, on a GPU or interpreted")
@pytest.mark.parametrize("kind", list(Quantisation))
@pytest.mark.parametrize(("num_pairs", "depth"), [(5, 64), (90, 96), (40, 2048)])
def test_the_kernels_give_the_product_of_each_rows_expert(kind: Quantisation, num_pairs: int, depth: int) -> None:
    from client.runtime.packed_expert_kernels import multiply_blocks, multiply_pairs

    torch.manual_seed(5)
    parts = [pack(torch.randn(32, depth, device=DEVICE), kind) for _ in range(4)]
    weight = PackedWeight(kind, *(torch.stack([getattr(p, n) for p in parts]) for n in ("codes", "scales")), depth)
    experts = torch.randint(0, 3, (num_pairs,), device=DEVICE)
    rows, bias = torch.randn(num_pairs, depth, device=DEVICE), torch.randn(4, 32, device=DEVICE)
    blocks = blocks_of(experts, num_pairs, 4)
    for given in (None, bias):
        wanted = gathered_product(rows, weight, experts, given)
        for found in (multiply_pairs(rows, weight, experts, given), multiply_blocks(rows, weight, blocks, given)):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=5e-3)
