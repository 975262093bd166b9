"""GPTQ, AWQ and compressed-tensors checkpoints: every weight is (code - zero) * scale, whatever order it was stored in.

Codes are packed here one by one, by the formats' descriptions, not by turning the reader round."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coordinator.models.errors import ConversionError
from coordinator.models.unpack import unpack_folder
from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer

GROUP = 32
LAYER = "model.layers.0.mlp.down_proj"


def _words(rows: Sequence[Sequence[int]], bits: int, places: Sequence[int] | None = None) -> Tensor:
    """int32 [len(rows), codes * bits / 32]; `places` says where in a word the k-th of its codes goes."""
    per_word = 32 // bits
    out = torch.zeros(len(rows), -(-len(rows[0]) // per_word), dtype=torch.int64)
    for row, codes in enumerate(rows):
        for number, code in enumerate(codes):
            place = number % per_word if places is None else places[number % per_word]
            out[row, number // per_word] |= int(code) << (bits * place)
    return (out + 2**31).remainder(2**32).sub(2**31).int()  # as signed words


@dataclass
class Codes:
    """A weight in few bits: [rows, depth], [rows, groups], [rows, groups], [depth]."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    group_of: Tensor
    bits: int

    def plain(self) -> Tensor:
        difference = (self.codes - self.zeros[:, self.group_of]).float()
        return (difference * self.scales[:, self.group_of].float()).to(self.scales.dtype)


def _random_codes(shape: torch.Size, bits: int, seed: int, *, shuffled: bool = False) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    rows, depth = shape
    groups = depth // GROUP
    codes = torch.randint(0, 2**bits, (rows, depth), generator=generator)
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=generator)
    scales = (torch.rand(rows, groups, generator=generator) / 100 + 0.001).half()
    group_of = torch.arange(depth) // GROUP
    if shuffled:
        group_of = group_of[torch.randperm(depth, generator=generator)]
    return Codes(codes, zeros, scales, group_of, bits)


def _gptq(codes: Codes, stored_less: int = 1) -> dict[str, Tensor]:
    zeros = (codes.zeros - stored_less) % 2**codes.bits
    return {
        "qweight": _words(codes.codes.tolist(), codes.bits).T.contiguous(),
        "qzeros": _words(zeros.T.tolist(), codes.bits),
        "scales": codes.scales.T.contiguous(),
        "g_idx": codes.group_of.int(),
    }


def _gptq_v2(codes: Codes) -> dict[str, Tensor]:
    return _gptq(codes, 0)


def _awq(codes: Codes) -> dict[str, Tensor]:
    places = (0, 4, 1, 5, 2, 6, 3, 7)
    return {
        "qweight": _words(codes.codes.T.tolist(), 4, places),
        "qzeros": _words(codes.zeros.T.tolist(), 4, places),
        "scales": codes.scales.T.contiguous(),
    }


def _compressed(codes: Codes) -> dict[str, Tensor]:
    return {
        "weight_packed": _words(codes.codes.tolist(), codes.bits),
        "weight_zero_point": _words(codes.zeros.T.tolist(), codes.bits).T.contiguous(),
        "weight_scale": codes.scales,
        "weight_shape": torch.tensor(codes.codes.shape),
        "weight_g_idx": codes.group_of.int(),
    }


Packer = Callable[[Codes], dict[str, Tensor]]


def _packed_folder(folder: Path, packing: dict[str, Any], packer: Packer, bits: int, **how: bool) -> dict[str, Tensor]:
    """A tiny checkpoint whose layers' matrices are random codes, and what they stand for."""
    save_tiny("llama", folder, vocab_size=260, hidden_size=64, intermediate_size=96)
    save_tokenizer(folder, 260)
    plain, packed = dict[str, Tensor](), dict[str, Tensor]()
    for seed, (name, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        if not name.endswith("_proj.weight"):
            plain[name] = packed[name] = tensor.half()
            continue
        codes = _random_codes(tensor.shape, bits, seed, **how)
        plain[name] = codes.plain()
        packed.update({name.removesuffix("weight") + part: made for part, made in packer(codes).items()})
    _save(folder, packed, packing)
    return plain


def _save(folder: Path, tensors: dict[str, Tensor], packing: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": packing}))


def _no_step(step: str) -> None:
    pass


def _unpacked(folder: Path) -> dict[str, Tensor]:
    target = folder.parent / "plain"
    target.mkdir()
    unpack_folder(folder, target, _no_step)
    return {name: tensor for path in target.glob("*.safetensors") for name, tensor in load_file(path).items()}


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
GPTQ_V2 = {**GPTQ, "checkpoint_format": "gptq_v2"}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}


@pytest.mark.parametrize(
    ("packing", "packer", "bits", "shuffled"),
    [
        (GPTQ, _gptq, 2, False),
        (GPTQ, _gptq, 4, False),
        (GPTQ, _gptq, 4, True),
        (GPTQ, _gptq, 8, False),
        (GPTQ_V2, _gptq_v2, 4, False),
        (AWQ, _awq, 4, False),
        (COMPRESSED, _compressed, 4, False),
        (COMPRESSED, _compressed, 4, True),
        (COMPRESSED, _compressed, 8, False),
    ],
)
def test_every_weight_is_what_its_code_zero_and_scale_say(
    packing: dict[str, Any], packer: Packer, bits: int, shuffled: bool, tmp_path: Path
) -> None:
    plain = _packed_folder(tmp_path / "packed", packing, packer, bits, shuffled=shuffled)
    found = _unpacked(tmp_path / "packed")
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_known_word_is_read_as_the_formats_describe_it(tmp_path: Path) -> None:
    """By hand: 0x76543210 holds 0 to 7 for GPTQ, and 0 2 4 6 1 3 5 7 for AWQ reads them as 0 4 1 5 2 6 3 7."""
    plain = _packed_folder(tmp_path / "packed", AWQ, _awq, 4)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    tensors[f"{LAYER}.qweight"][0, 0] = 0x76543210
    tensors[f"{LAYER}.qzeros"][0, 0] = 0
    tensors[f"{LAYER}.scales"][0, :8] = 1
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    found = _unpacked(tmp_path / "packed")[f"{LAYER}.weight"]
    assert found[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(found[8:], plain[f"{LAYER}.weight"][8:])


def test_symmetric_codes_without_zeros_are_raised_by_half_their_range(tmp_path: Path) -> None:
    plain = _packed_folder(tmp_path / "packed", COMPRESSED, _compressed, 4)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    scales = tensors[f"{LAYER}.weight_scale"]
    codes = _random_codes(plain[f"{LAYER}.weight"].shape, 4, 77)
    tensors[f"{LAYER}.weight_packed"] = _words(codes.codes.tolist(), 4)
    for part in ("weight_zero_point", "weight_g_idx"):
        del tensors[f"{LAYER}.{part}"]
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    expected = ((codes.codes - 8).float() * scales.float().repeat_interleave(GROUP, 1)).half()
    assert torch.equal(_unpacked(tmp_path / "packed")[f"{LAYER}.weight"], expected)


def test_compressed_codes_in_fp8_int8_and_4_bit_floats_are_read_too(tmp_path: Path) -> None:
    plain = _packed_folder(tmp_path / "packed", COMPRESSED, _compressed, 4)
    tensors = {name: t for name, t in load_file(tmp_path / "packed" / "model.safetensors").items() if LAYER not in name}
    rows, depth = plain[f"{LAYER}.weight"].shape
    generator = torch.Generator().manual_seed(5)
    scales, expected = torch.rand(rows, 1, generator=generator).bfloat16(), dict[str, Tensor]()
    int8 = torch.randint(-128, 128, (rows, depth), generator=generator).to(torch.int8)
    fp8 = torch.randn(rows, depth, generator=generator).to(torch.float8_e4m3fn)
    codes = torch.randint(0, 16, (rows, depth), generator=generator)
    small = (torch.rand(rows, depth // 16, generator=generator) * 10 + 1).to(torch.float8_e4m3fn)
    exponents = torch.randint(110, 130, (rows, depth // 32), generator=generator).to(torch.uint8)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])[codes]
    stored = {
        "model.layers.0.a.weight": int8, "model.layers.0.a.weight_scale": scales,
        "model.layers.0.b.weight": fp8, "model.layers.0.b.weight_scale": scales.clone(),
        "model.layers.0.b.input_scale": torch.ones(1),
        "model.layers.0.c.weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8),
        "model.layers.0.c.weight_scale": small, "model.layers.0.c.weight_global_scale": torch.tensor([64.0]),
        "model.layers.0.d.weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8),
        "model.layers.0.d.weight_scale": exponents,
    }  # fmt: skip
    expected["a"] = (int8.float() * scales.float()).bfloat16()
    expected["b"] = (fp8.float() * scales.float()).bfloat16()
    expected["c"] = (values * (small.float() / 64).repeat_interleave(16, 1)).bfloat16()
    expected["d"] = (values * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)).bfloat16()
    save_file({**tensors, **stored}, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    found = _unpacked(tmp_path / "packed")
    added = {name for name in found if name not in plain}
    assert added == {f"model.layers.0.{letter}.weight" for letter in expected}
    for letter, tensor in expected.items():
        assert torch.equal(found[f"model.layers.0.{letter}.weight"], tensor), letter


@pytest.mark.parametrize(
    ("packing", "packer", "changes", "message"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, _gptq, {}, "checkpoint_format 'marlin' of GPTQ is not known"),
        ({**AWQ, "version": "gemv"}, _awq, {}, "version 'gemv' of AWQ is not known"),
        (GPTQ, _gptq, {"scales": None}, "scales is missing"),
        (GPTQ, _gptq, {"scales": torch.ones(3)}, "not groups by rows"),
        (GPTQ, _gptq, {"qzeros": torch.zeros(3, 6, dtype=torch.int32)}, "are not of 2, 4 or 8 bits"),
        (GPTQ, _gptq, {"qzeros": torch.zeros(7, 8, dtype=torch.int32)}, r"zeros \[64, 7\]"),
        (GPTQ, _gptq, {"g_idx": torch.full((96,), 3, dtype=torch.int32)}, "scales"),
        (GPTQ, _gptq, {"qweight": torch.zeros(12, 64)}, "not int32"),
        (AWQ, _awq, {"qweight": torch.zeros(96, 16, dtype=torch.int32)}, "these are of others"),
        (COMPRESSED, _compressed, {"weight_shape": torch.tensor([64, 5000])}, "words for 64 by 5000 weights"),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_refused(
    packing: dict[str, Any], packer: Packer, changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    _packed_folder(tmp_path / "packed", packing, packer, 4)
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    tensors.update({f"{LAYER}.{part}": made for part, made in changes.items() if made is not None})
    for part in (part for part, made in changes.items() if made is None):
        del tensors[f"{LAYER}.{part}"]
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=message):
        _unpacked(tmp_path / "packed")
