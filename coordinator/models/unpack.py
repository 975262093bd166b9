"""A folder of FP8 or MXFP4 weights to one of bfloat16, tensor by tensor, in the converter's process (convert.py).

Not by loading the model with transformers: that needs all of it in memory, and takes the size of a block from the
shapes of weight and scales, which is wrong where a weight does not end with a block (5.23, Fp8Dequantize).

    FP8      `X` float8, `X_scale_inv` float32: a scale for each block of weight_block_size, or one for all
    MXFP4    `X_blocks` uint8 [..., rows, groups, 16] with two codes a byte, the low one first, and `X_scales` uint8
             [..., rows, groups], exponents of two less 127; the tensor that they stand for is [..., depth, rows]

Whatever is not packed stays as it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from coordinator.models.build import INDEX_FILE, weight_files
from coordinator.models.config import packing_config, packing_of, read_config
from coordinator.models.errors import ConversionError
from coordinator.models.files import regular_file, required_json

Say = Callable[[str], None]
SHARD_BYTES = 256 * 10**6
"""A node with one layer touches few shards, and a damaged one is soon replaced."""
REWRITTEN = ("config.json", "*.safetensors.index.json")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""OCP microscaling formats 1.0, section 5.3.3: what the codes 0 to 15 stand for."""
EXPONENT_BIAS = 127
FP8_SCALE, BLOCKS, SCALES = "_scale_inv", "_blocks", "_scales"
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def unpack_folder(source: Path, target: Path, say: Say) -> None:
    """Write what the weights in `source` stand for, and its tokenizer, into the folder `target`.

    Raises ModelError."""
    read_config(source, may_be_packed=True)
    config = required_json(source, "config.json")
    say("unpacking weights")
    with _Checkpoint(source) as checkpoint:
        unpacked = _fp8(checkpoint, config) if packing_of(config) == "fp8" else _mxfp4(checkpoint)
        _write_shards(target, unpacked)
    _write_config(target, config)
    for path in (*source.glob("*.json"), *source.glob("*.jinja")):
        found = regular_file(source, path.name)
        if found is not None and not any(path.match(pattern) for pattern in REWRITTEN):
            shutil.copyfile(found, target / path.name)


class _Checkpoint:
    """The tensors of a folder's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        self._paths = list(weight_files(folder).values())
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _Checkpoint:
        for path in self._paths:
            file = safe_open(path, framework="pt")
            names: list[str] = file.keys()  # type: ignore[no-untyped-call]
            self._files.update(dict.fromkeys(names, file))
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()  # with the last one that names it, a file is closed

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Sequence[str]:
        """File by file, so that each is read once from front to back."""
        return list(self._files)

    def read(self, name: str) -> Tensor:
        if name not in self._files:
            raise ConversionError(self._name, f"the tensor {name} is missing")
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def _fp8(checkpoint: _Checkpoint, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    block = packing_config(config).get("weight_block_size")
    for name in checkpoint.names():
        if name.endswith((FP8_SCALE, ".input_scale", ".activation_scale")):  # of activations: for products in FP8
            continue
        tensor = checkpoint.read(name)
        if tensor.dtype in FP8_DTYPES:
            tensor = _scaled(name, tensor, checkpoint.read(name + FP8_SCALE), block)
        yield name, tensor


def _scaled(name: str, codes: Tensor, scales: Tensor, block: Sequence[int] | None) -> Tensor:
    """The codes times the scale of their block, [..., rows, columns]; a block at the edge may be cut off."""
    if scales.numel() == 1:
        return (codes.float() * scales.float()).bfloat16()
    if not (isinstance(block, list) and len(block) == 2) or codes.ndim < 2:
        raise ConversionError(name, "it has many scales, and config.json does not say of which blocks")
    rows, columns = codes.shape[-2:]
    if tuple(scales.shape) != (*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1])):
        raise ConversionError(name, f"{list(scales.shape)} scales for {list(codes.shape)} weights in blocks of {block}")
    wide = scales.float().repeat_interleave(block[1], -1)[..., :columns]
    out = torch.empty(codes.shape, dtype=torch.bfloat16)
    for start in range(0, rows, block[0]):  # a stripe at a time: float32 takes four times the room
        stripe = slice(start, start + block[0])
        out[..., stripe, :] = codes[..., stripe, :].float() * wide[..., start // block[0], None, :]
    return out


def _mxfp4(checkpoint: _Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name in checkpoint.names():
        if name.endswith(BLOCKS):
            own_name = name.removesuffix(BLOCKS)
            yield own_name, _from_blocks(name, checkpoint.read(name), checkpoint.read(own_name + SCALES))
        elif not (name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in checkpoint):
            yield name, checkpoint.read(name)


def _from_blocks(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    """[..., depth, rows]. Every value is exact in bfloat16."""
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8 or blocks.shape[:-1] != scales.shape:
        raise ConversionError(name, f"{list(scales.shape)} scales for blocks {list(blocks.shape)}")
    values = torch.tensor(E2M1, dtype=torch.bfloat16)
    *outer, rows, groups, num_bytes = blocks.shape
    out = torch.empty(*outer, groups * num_bytes * 2, rows, dtype=torch.bfloat16).flatten(0, -3)
    for number, (codes, exponents) in enumerate(
        zip(blocks.flatten(0, -4), scales.flatten(0, -3).int() - EXPONENT_BIAS, strict=True)
    ):
        pairs = torch.stack([values[(codes & 15).int()], values[(codes >> 4).int()]], dim=-1).flatten(-2)
        out[number] = torch.ldexp(pairs, exponents[..., None]).flatten(-2).T
    return out.view(*outer, -1, rows)


def _write_shards(target: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise ConversionError(name, "it is not finite in bfloat16")
        if waiting and sum(one.nbytes for one in waiting.values()) + tensor.nbytes > SHARD_BYTES:
            shards.append(_write_shard(target, len(shards), waiting))
        waiting[name] = tensor.contiguous()
    shards.append(_write_shard(target, len(shards), waiting))
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (target / _shard_name(number)).rename(target / file)
        weight_map.update(dict.fromkeys(names, file))
    (target / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def _write_shard(target: Path, number: int, waiting: dict[str, Tensor]) -> list[str]:
    names = list(waiting)
    save_file(waiting, target / _shard_name(number), metadata={"format": "pt"})
    waiting.clear()
    return names


def _shard_name(number: int) -> str:
    """Until it is known how many there are."""
    return f"{number}.part"


def _write_config(target: Path, config: Mapping[str, Any]) -> None:
    """The same without how weights were packed."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(nested := plain.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in nested.items() if key != "quantization_config"}
    (target / "config.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
