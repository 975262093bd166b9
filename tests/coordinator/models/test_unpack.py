"""Packed checkpoints become plain ones: every weight is what its codes and scales stand for, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.models import unpack
from coordinator.models.catalog import Catalog
from coordinator.models.config import UNPACKED
from coordinator.models.errors import BrokenModelError, ConversionError, UnsupportedModelError
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.models.unpack import unpack_folder
from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer

VOCAB = 260

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""Of E2M1 codes (OCP microscaling formats 1.0, section 5.3.3)."""


def _packed_folder(folder: Path, architecture: str, packing: dict[str, Any], **changes: int) -> dict[str, torch.Tensor]:
    """A tiny checkpoint packed by hand, and what its weights stand for."""
    save_tiny(architecture, folder, vocab_size=VOCAB, **changes)
    save_tokenizer(folder, VOCAB)
    tensors, plain = load_file(folder / "model.safetensors"), dict[str, torch.Tensor]()
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        made, plain[name] = {"fp8": _as_fp8, "mxfp4": _as_mxfp4}[packing["quant_method"]](name, tensor)
        packed.update(made)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": packing}))
    return plain


def _as_fp8(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Linear layers of decoder layers, one scale for each 128 x 128 weights."""
    if not (".layers." in name and tensor.ndim == 2):
        return {name: tensor.bfloat16()}, tensor.bfloat16()
    rows, columns = (-(-size // 128) for size in tensor.shape)
    scales = torch.rand(rows, columns) + 0.5
    wide = scales.repeat_interleave(128, 0)[: tensor.shape[0]].repeat_interleave(128, 1)[:, : tensor.shape[1]]
    codes = (tensor / wide).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scales}, (codes.float() * wide).bfloat16()


def _as_mxfp4(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The experts' matrices, stored with the depth last: 32 weights a scale, which is a power of two."""
    if not (".experts." in name and tensor.ndim == 3):
        return {name: tensor.bfloat16()}, tensor.bfloat16()
    experts, depth, rows = tensor.shape
    generator = torch.Generator().manual_seed(len(name))
    codes = torch.randint(0, 16, (experts, rows, depth // 32, 32), generator=generator)
    scales = torch.randint(120, 128, (experts, rows, depth // 32), generator=generator)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
    values = (FP4_VALUES[codes] * 2.0 ** (scales[..., None] - 127)).flatten(2).transpose(1, 2)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales.to(torch.uint8)}, values.bfloat16()


@pytest.mark.parametrize(
    ("architecture", "packing", "changes"),
    [
        ("qwen3", FP8, {"hidden_size": 256, "intermediate_size": 320}),
        ("gpt_oss", MXFP4, {"hidden_size": 64, "intermediate_size": 96}),
    ],
)
def test_a_packed_folder_becomes_a_model_of_plain_numbers(
    architecture: str, packing: dict[str, Any], changes: dict[str, int], tmp_path: Path
) -> None:
    plain = _packed_folder(tmp_path / "packed", architecture, packing, **changes)
    model = Catalog(tmp_path / "catalog").add(str(tmp_path / "packed"))
    assert model.name == "packed"
    assert {tensor.dtype for tensor in model.manifest.tensors} == {"BF16"}
    found = {name: tensor for path in model.files.values() if path.suffix == ".safetensors"
             for name, tensor in load_file(path).items()}  # fmt: skip
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    assert ChatTokenizer.load(model.tokenizer_folder).encode_text("ab")
    again = Catalog(tmp_path / "catalog").add(str(tmp_path / "packed"))
    assert again.folder == model.folder, "it is converted once"


def test_a_folder_that_is_packed_otherwise_is_refused_by_the_name_of_its_format(tmp_path: Path) -> None:
    _packed_folder(tmp_path / "packed", "qwen3", FP8, hidden_size=128)
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnsupportedModelError, match=r"quantised \(bitsandbytes.*awq, compressed-tensors, .*gptq or mxfp4"
    ):
        Catalog(tmp_path / "catalog").add(str(tmp_path / "packed"))


def test_every_format_that_is_said_to_be_unpacked_has_its_function() -> None:
    assert unpack.UNPACKERS.keys() == UNPACKED


def _no_step(step: str) -> None:
    pass


def _unpacked(folder: Path) -> dict[str, torch.Tensor]:
    target = folder.parent / "plain"
    target.mkdir()
    unpack_folder(folder, target, _no_step)
    return {name: tensor for path in target.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _repack(folder: Path, changes: dict[str, torch.Tensor | None], **packing: Any) -> None:
    """Replace tensors of a packed folder, or leave them out, and fields of how it is packed."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(packing)
    (folder / "config.json").write_text(json.dumps(config))


WEIGHT = "model.layers.0.mlp.down_proj.weight"


def test_one_scale_for_a_whole_weight_is_taken_too(tmp_path: Path) -> None:
    plain = _packed_folder(tmp_path / "packed", "qwen3", FP8, hidden_size=128)
    codes = (plain[WEIGHT].float() / 4).to(torch.float8_e4m3fn)
    scale = torch.tensor(4.0)
    _repack(
        tmp_path / "packed", {WEIGHT: codes, f"{WEIGHT}_scale_inv": scale, f"{WEIGHT[:-6]}input_scale": scale.clone()}
    )
    found = _unpacked(tmp_path / "packed")
    assert found.keys() == plain.keys(), "scales of activations are left out"
    assert torch.equal(found[WEIGHT], (codes.float() * 4).bfloat16())


def test_a_large_model_is_written_in_several_files_and_an_index_says_what_is_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _packed_folder(tmp_path / "packed", "qwen3", FP8, hidden_size=128)
    monkeypatch.setattr(unpack, "SHARD_BYTES", 100_000)
    assert _unpacked(tmp_path / "packed").keys() == plain.keys()
    index = json.loads((tmp_path / "plain" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert all(name in load_file(tmp_path / "plain" / file) for name, file in index.items())
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "plain" / "config.json").write_text((tmp_path / "packed" / "config.json").read_text())
    unpack_folder(tmp_path / "plain", again, _no_step)  # by its index, now that it has one
    assert json.loads((again / "model.safetensors.index.json").read_text())["weight_map"].keys() == plain.keys()


@pytest.mark.parametrize(
    ("changes", "packing", "message"),
    [
        ({f"{WEIGHT}_scale_inv": None}, {}, f"{WEIGHT}_scale_inv is missing"),
        ({f"{WEIGHT}_scale_inv": torch.ones(3, 3)}, {}, r"\[3, 3\] scales for"),
        ({f"{WEIGHT}_scale_inv": torch.full((1, 1), torch.nan)}, {}, "not finite"),
        ({f"{WEIGHT}_scale_inv": torch.ones(2, 1)}, {"weight_block_size": None}, "does not say of which blocks"),
    ],
)
def test_scales_that_do_not_fit_their_weights_are_refused(
    changes: dict[str, torch.Tensor | None], packing: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _packed_folder(tmp_path / "packed", "qwen3", FP8, hidden_size=256)
    _repack(tmp_path / "packed", changes, **packing)
    with pytest.raises(ConversionError, match=message):
        _unpacked(tmp_path / "packed")


def test_blocks_whose_scales_are_others_are_refused(tmp_path: Path) -> None:
    _packed_folder(tmp_path / "packed", "gpt_oss", MXFP4, hidden_size=64, intermediate_size=96)
    name = "model.layers.1.mlp.experts.down_proj"
    _repack(tmp_path / "packed", {f"{name}_scales": torch.zeros(4, 2, dtype=torch.uint8)})
    with pytest.raises(ConversionError, match="scales for blocks"):
        _unpacked(tmp_path / "packed")


def test_a_packed_folder_with_a_link_for_weights_is_refused(tmp_path: Path) -> None:
    _packed_folder(tmp_path / "packed", "qwen3", FP8, hidden_size=128)
    elsewhere = tmp_path / "elsewhere.safetensors"
    (tmp_path / "packed" / "model.safetensors").rename(elsewhere)
    (tmp_path / "packed" / "model.safetensors").symlink_to(elsewhere)
    with pytest.raises(BrokenModelError, match="it is a link"):
        _unpacked(tmp_path / "packed")
