"""A folder of packed weights to one of plain ones, tensor by tensor, in the converter's process (convert.py).

Not by loading the model with transformers: that needs all of it in memory and, for most formats, further packages that
want a GPU; and it takes the size of an FP8 block from the shapes of weight and scales, which is wrong where a weight
does not end with a block (5.23, Fp8Dequantize).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from coordinator.models.build import INDEX_FILE
from coordinator.models.config import packing_of, read_config
from coordinator.models.errors import ConversionError
from coordinator.models.files import regular_file, required_json
from coordinator.models.stored_tensors import StoredTensors
from coordinator.models.unpack_floats import unpack_fp8, unpack_mxfp4
from coordinator.models.unpack_integers import unpack_awq, unpack_compressed, unpack_gptq

Say = Callable[[str], None]
Unpacker = Callable[[StoredTensors, Mapping[str, Any]], Iterator[tuple[str, Tensor]]]
UNPACKERS: Mapping[str, Unpacker] = {
    "awq": unpack_awq,
    "compressed-tensors": unpack_compressed,
    "fbgemm_fp8": unpack_fp8,
    "fp8": unpack_fp8,
    "gptq": unpack_gptq,
    "mxfp4": unpack_mxfp4,
}
"""By `quant_method` of a model's config.json; config.UNPACKED has the same names."""
SHARD_BYTES = 256 * 10**6
"""A node with one layer touches few shards, and a damaged one is soon replaced."""
REWRITTEN = ("config.json", "*.safetensors.index.json")


def unpack_folder(source: Path, target: Path, say: Say) -> None:
    """Write what the weights in `source` stand for, and its tokenizer, into the folder `target`.

    Raises ModelError."""
    read_config(source, may_be_packed=True)
    config = required_json(source, "config.json")
    say("unpacking weights")
    with StoredTensors(source) as stored:
        _write_shards(target, UNPACKERS[packing_of(config)](stored, config))
    _write_config(target, config)
    for path in (*source.glob("*.json"), *source.glob("*.jinja")):
        found = regular_file(source, path.name)
        if found is not None and not any(path.match(pattern) for pattern in REWRITTEN):
            shutil.copyfile(found, target / path.name)


def _write_shards(target: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise ConversionError(name, "it is not finite in 16 bits")
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
