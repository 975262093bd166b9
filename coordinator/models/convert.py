"""`python -m coordinator.models.convert SRC DST [--dtype float16]`: to safetensors of plain numbers and a tokenizer.

SRC is a GGUF file, or a folder whose weights are packed (unpack.py). A process of its own: with unpack.py it is the
coordinator's only code that imports torch (extra `convert`), and it has a GGUF file's whole model in memory once, which
it gives back when it ends. Standard output is one JSON object per line: `{"step": ...}` as it goes, and at the end
`{"done": folder}` or `{"error": sentence}`. Exit status 0, 1 (refused or failed), 2 (usage). DST appears only when it
is complete: the work is done in a folder beside it that is renamed at the end.

A GGUF file's storage is float16 by default: dequantised weights hold a few significant bits times a float16 scale, so
that float16's 11 bits keep them closer than bfloat16's 8; a weight beyond 65,504 is refused with advice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.models.config import UNPACKED, one_of, packing_of
from coordinator.models.errors import ConversionError, ModelError, ModelNotFoundError, UnsupportedModelError, shown
from coordinator.models.files import required_json

DTYPES = ("float16", "bfloat16", "float32")
MAX_SHARD_SIZE = "256MB"
"""Small shards: a node with one layer touches few of them, and a damaged one is soon replaced."""
PART_OF_MANY = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")


def convert(source: Path, target: Path, dtype: str = "float16") -> None:
    """Write the model of GGUF file or packed folder `source` to the new folder `target`; `dtype` is of the former.

    Raises ModelNotFoundError, UnsupportedModelError or ConversionError; then `target` does not exist."""
    _check_source(source)
    if target.exists():
        raise ConversionError(source.name, f"the folder {target.name} is there already")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if source.is_dir():
            _unpack(source, partial)
        else:
            _convert_model(source, partial, dtype)
            _convert_tokenizer(source, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(source: Path, target: Path) -> None:
    from coordinator.models.unpack import unpack_folder

    unpack_folder(source, target, _say)


def _check_source(source: Path) -> None:
    if source.is_dir():
        if packing_of(required_json(source, "config.json")) not in UNPACKED:
            raise UnsupportedModelError(source.name, f"its weights are not in {one_of(UNPACKED)}")
        return
    if not source.is_file():
        raise ModelNotFoundError(source.name, "there is no such file")
    with source.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UnsupportedModelError(source.name, "it is not a GGUF file (it does not begin with the letters GGUF)")
    if PART_OF_MANY.search(source.name):
        raise UnsupportedModelError(source.name, "it is one part of a split GGUF; merge the parts into one file first")


def _convert_model(source: Path, target: Path, dtype: str) -> None:
    _say("reading weights")
    model = _load_model(source, dtype)
    _say("checking weights")
    _check_finite(source, model, dtype)
    _say("writing weights")
    model.save_pretrained(target, max_shard_size=MAX_SHARD_SIZE)


def _load_model(source: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model, info = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    # transformers fills what a file lacks with random numbers and only logs it
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ConversionError(source.name, f"it lacks {len(missing)} weights of its model, such as {missing[0]}")
    return model


def _check_finite(source: Path, model: Any, dtype: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            advice = "; try --dtype bfloat16 or float32" if dtype == "float16" else ""
            raise ConversionError(source.name, f"the weight {name} is not finite in {dtype}{advice}")


def _convert_tokenizer(source: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    _say("writing tokenizer")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    # A GGUF file does not say how text is normalised (Unicode NFC for Qwen); the model's own class in transformers
    # does. Loaded and saved once more, tokenizer.json says what that class does, so that nobody else needs the class.
    AutoTokenizer.from_pretrained(target).save_pretrained(target)


def _say(step: str) -> None:
    _write({"step": step})


def _write(line: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m coordinator.models.convert", description=convert.__doc__)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    return parser.parse_args(argv)


def _quiet_libraries() -> None:
    os.environ["TQDM_DISABLE"] = "1"  # read by tqdm at its import: transformers' GGUF reader has a bar of its own
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parse(argv)
    try:
        _quiet_libraries()
        convert(arguments.source.absolute(), arguments.target.absolute(), arguments.dtype)
    except ModelError as error:
        _write({"error": str(error)})
        return 1
    except ImportError as error:
        _write({"error": f"converting needs the extra `convert` (pip install 'decentllm[convert]'): {shown(error)}"})
        return 1
    except Exception as error:  # noqa: BLE001 - the edge of the process: the readers raise anything on a bad file
        _write({"error": str(ConversionError(arguments.source.name, shown(error) or type(error).__name__))})
        return 1
    _write({"done": str(arguments.target)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
