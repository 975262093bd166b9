"""The converter runs as the process that it is: it imports torch, and its libraries print and warn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from coordinator.models.catalog import Catalog
from coordinator.models.convert import convert
from coordinator.models.errors import ConversionError, ModelNotFoundError, UnsupportedModelError
from coordinator.models.safetensors_header import read_header
from coordinator.models.tokenizer import ChatTokenizer

HIDDEN, FFN, VOCAB, LAYERS = 32, 64, 260, 2
SHAPES = {
    "attn_norm": (HIDDEN,),
    "ffn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN, HIDDEN),
    "attn_v": (HIDDEN, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}


def _tensors() -> dict[str, tuple[int, ...]]:
    layers = {f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in SHAPES.items()}
    return {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), **layers}


def _make_gguf(path: Path, *, left_out: str = "", value: float = 0.5) -> Path:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    _add_tokenizer(writer)
    tensors = _tensors() | {f"blk.{n}.attn_{name}.bias": (HIDDEN,) for n in range(LAYERS) for name in ("q", "k", "v")}
    for name, shape in tensors.items():
        if name != left_out:
            writer.add_tensor(name, np.full(shape, value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    from tokenizers import pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "ab"]
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(258)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")


def _run(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "coordinator.models.convert", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _refused(*arguments: object) -> str:
    status, lines = _run(*arguments)
    assert status == 1
    return str(lines[-1]["error"])


def test_a_gguf_file_becomes_a_model_that_the_catalog_serves(tmp_path: Path) -> None:
    source = _make_gguf(tmp_path / "tiny.gguf")
    steps: list[str] = []
    catalog = Catalog(tmp_path / "catalog")
    model = catalog.add(str(source), progress=lambda step, done, total: steps.append(step))
    assert (model.name, model.shape.num_layers, model.shape.hidden_size) == ("tiny", LAYERS, HIDDEN)
    assert {tensor.dtype for tensor in model.manifest.tensors} == {"F16"}
    assert steps[0] == "reading weights"
    assert [path.name for path in (tmp_path / "catalog" / "converted").iterdir()] == [model.folder.name]
    tokenizer = ChatTokenizer.load(model.tokenizer_folder)
    assert tokenizer.encode_chat([{"role": "user", "content": "ab"}]) == [257, 259, 258]
    assert tokenizer.stop_tokens() == (256, 258)
    # NFC, which the GGUF file does not say but the model's class in transformers does
    assert tokenizer.encode_text("e\u0301") == tokenizer.encode_text("\u00e9")


def test_weights_beyond_float16_are_refused_with_advice_that_works(tmp_path: Path) -> None:
    source = _make_gguf(tmp_path / "tiny.gguf", value=1e6)
    assert "is not finite in float16; try --dtype bfloat16" in _refused(source, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    status, lines = _run(source, tmp_path / "out", "--dtype", "float32")
    assert (status, lines[-1]) == (0, {"done": str(tmp_path / "out")})
    header = read_header(tmp_path / "out" / "model.safetensors", "model.safetensors")
    assert {tensor.dtype for tensor in header.tensors} == {"F32"}


def test_a_file_that_lacks_a_weight_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = _make_gguf(tmp_path / "tiny.gguf", left_out="blk.1.ffn_up.weight")
    assert "it lacks 1 weights of its model, such as model.layers.1.mlp.up_proj.weight" in _refused(
        source, tmp_path / "out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_file_that_only_begins_like_a_gguf_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(40))
    error = _refused(tmp_path / "a.gguf", tmp_path / "out")
    assert error.startswith("a.gguf could not be converted: ")
    assert "\n" not in error


# What follows is refused before torch is needed, so that no process is.


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.gguf", b"GGML1234", "it is not a GGUF file"),
        ("a.gguf", b"", "it is not a GGUF file"),
        ("a-00001-of-00002.gguf", b"GGUF", "one part of a split GGUF"),
    ],
)
def test_a_file_that_is_no_whole_gguf_is_refused(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=match):
        convert(tmp_path / name, tmp_path / "out")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no such file"):
        convert(tmp_path / "a.gguf", tmp_path / "out")


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConversionError, match="is there already"):
        convert(tmp_path / "a.gguf", tmp_path)
