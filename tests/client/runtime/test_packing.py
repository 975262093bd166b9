"""Packed weights: near what they stand for, the same whatever they are packed beside, of the size that is planned."""

from __future__ import annotations

import pytest
import torch

from client.runtime import packing
from client.runtime.packing import HALF, pack
from protocol.quantisation import GROUP, packed_bytes
from protocol.values import Quantisation

STEPS = {Quantisation.INT8: 127, Quantisation.INT4: 8}
KINDS = pytest.mark.parametrize("kind", list(Quantisation))


def weight(rows: int = 24, depth: int = 96) -> torch.Tensor:
    return torch.randn(rows, depth, generator=torch.Generator().manual_seed(5))


@KINDS
def test_no_weight_is_off_by_more_than_a_step_of_the_largest(kind: Quantisation) -> None:
    original = weight()
    error = (pack(original, kind).dense(torch.float32) - original).abs()
    assert float(error.max()) <= 1.02 * float(original.abs().max()) / STEPS[kind]
    assert float(error.norm() / original.norm()) < {Quantisation.INT8: 0.01, Quantisation.INT4: 0.1}[kind]


def test_eight_weights_of_a_word_lie_an_eighth_of_the_row_apart_and_share_a_scale_with_those_beside_them() -> None:
    original = torch.zeros(1, 2 * GROUP)
    original[0, 8 * 3 + 1] = -8.0  # word 1, fourth code
    original[0, 1] = 4.0
    packed = pack(original, Quantisation.INT4)
    codes = [int(packed.codes[0, 1]) >> (4 * place) & 15 for place in range(8)]
    assert codes == [HALF + 4, HALF, HALF, HALF - 8, HALF, HALF, HALF, HALF]
    assert packed.scales.tolist() == [[1.0, 1.0]]
    assert torch.equal(packed.dense(torch.float32), original)


@KINDS
def test_a_row_is_packed_alike_whatever_the_block_that_it_is_in(
    kind: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack(weight(), kind)
    monkeypatch.setattr(packing, "BLOCK_ELEMENTS", 5 * 96)
    blocks = pack(weight(), kind)
    assert torch.equal(whole.codes, blocks.codes)
    assert torch.equal(whole.scales, blocks.scales)


@KINDS
def test_what_is_packed_takes_the_bytes_that_are_planned(kind: Quantisation) -> None:
    packed = pack(weight(), kind)
    assert packed.codes.nbytes + packed.scales.nbytes == packed_bytes((24, 96), kind)


@KINDS
def test_a_matrix_of_zeros_stays_one(kind: Quantisation) -> None:
    assert not pack(torch.zeros(4, 64), kind).dense(torch.float32).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@KINDS
def test_a_gpu_packs_to_the_same_bits_as_a_cpu(kind: Quantisation) -> None:
    here, there = pack(weight(), kind), pack(weight().cuda(), kind)
    assert torch.equal(here.codes, there.codes.cpu())
    assert torch.equal(here.scales, there.scales.cpu())
