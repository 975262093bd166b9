from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import manifest as m
from protocol.values import LayerRange

MIB = 2**20
HEADER = 100
DIGEST = hashlib.sha256(b"").hexdigest()
LAYER_NUMEL = 300_000
EMBEDDING = ("model.embed_tokens.weight", (1000, 500))


def _weights(*tensors: tuple[str, tuple[int, ...]], file: int) -> tuple[m.ManifestFile, list[m.TensorSpec]]:
    specs, start = [], HEADER
    for name, shape in tensors:
        size = m.tensor_bytes("F16", shape)
        assert size is not None
        specs.append(m.TensorSpec(name, file, "F16", shape, start, start + size))
        start += size
    digests = (DIGEST,) * m.num_chunks(start, MIB)
    return m.ManifestFile(f"model-{file}.safetensors", start, digests, HEADER), specs


def _manifest(*, head: bool = False) -> m.Manifest:
    """Embedding and layer 0 in one file, layers 1 to 3 and the ends in another; each layer has 600,000 bytes."""
    small = m.ManifestFile("config.json", 10, (DIGEST,))
    layers = [(f"model.layers.{n}.mlp.weight", (LAYER_NUMEL,)) for n in range(4)]
    first, first_specs = _weights(EMBEDDING, layers[0], file=1)
    ends = [("model.norm.weight", (500,)), *([("lm_head.weight", (1000, 500))] if head else [])]
    second, second_specs = _weights(*layers[1:], *ends, file=2)
    return m.Manifest(
        version=1,
        name="tiny",
        architecture="LlamaForCausalLM",
        config_json="{}",
        num_layers=4,
        hidden_size=500,
        vocab_size=1000,
        context_length=128,
        chunk_bytes=MIB,
        files=(small, first, second),
        tensors=(*first_specs, *second_specs),
    )


def _changed(change: Callable[[Any], None]) -> bytes:
    value = json.loads(m.encode_manifest(_manifest()))
    change(value)
    return json.dumps(value).encode()


def test_what_was_encoded_decodes_to_the_same() -> None:
    assert m.decode_manifest(m.encode_manifest(_manifest())) == _manifest()


def test_the_hash_is_the_sha256_of_the_bytes() -> None:
    assert m.manifest_hash(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_an_invalid_manifest_cannot_be_encoded() -> None:
    with pytest.raises(m.ManifestError, match="path"):
        m.encode_manifest(msgspec.structs.replace(_manifest(), files=(m.ManifestFile("../x", 1, (DIGEST,)),)))


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


# In an encoded tensor: 0 name, 1 file, 2 dtype, 3 shape, 4 start, 5 stop.
BAD = {
    "a later version": (_set("version", to=2), "version"),
    "an unknown field": (_set("colour", to=1), "colour"),
    "no layers": (_set("num_layers", to=0), "num_layers"),
    "a chunk size that is no power of two": (_set("chunk_bytes", to=MIB + 1), "chunk_bytes"),
    "a chunk size too small": (_set("chunk_bytes", to=1024), "chunk_bytes"),
    "a path that leaves the folder": (_set("files", 1, "path", to="../a"), "path"),
    "an absolute path": (_set("files", 1, "path", to="/etc/passwd"), "path"),
    "a path with a backslash": (_set("files", 1, "path", to="a\\b"), "path"),
    "a hidden file": (_set("files", 1, "path", to=".netrc"), "path"),
    "a name that ends in a dot": (_set("files", 1, "path", to="model."), "path"),
    "a name that ends in a newline": (_set("files", 1, "path", to="model\n"), "path"),
    "a device of Windows": (_set("files", 1, "path", to="NUL.safetensors"), "device"),
    "one file twice, in other letters": (_set("files", 1, "path", to="CONFIG.json"), "twice"),
    "a digest that is too short": (_set("files", 0, "chunk_digests", 0, to="ab"), "chunk_digests"),
    "a digest in capitals": (_set("files", 0, "chunk_digests", 0, to="A" * 64), "chunk_digests"),
    "a digest too many": (_set("files", 0, "chunk_digests", to=[DIGEST] * 2), "2 digests for 1 chunks"),
    "a size of zero": (_set("files", 0, "size_bytes", to=0), "size_bytes"),
    "a size of 2**63": (_set("files", 0, "size_bytes", to=2**63), "size_bytes"),
    "a header longer than its file": (_set("files", 1, "header_bytes", to=2**40), "header_bytes"),
    "a tensor of a file that is not there": (_set("tensors", 0, 1, to=9), r"tensors\[0\]\.file"),
    "a tensor of a file without a header": (_set("tensors", 0, 1, to=0), r"tensors\[0\]\.file"),
    "a tensor name with a line break": (_set("tensors", 0, 0, to="a\nb"), "tensors"),
    "a tensor twice": (_set("tensors", 1, 0, to=EMBEDDING[0]), "twice"),
    "an unknown element type": (_set("tensors", 0, 2, to="F17"), "dtype"),
    "a shape that does not fit the bytes": (_set("tensors", 0, 3, to=[7]), r"tensors\[0\]\.stop"),
    "a negative dimension": (_set("tensors", 0, 3, to=[-1000, -500]), "tensors"),
    "a shape that overflows 64 bits": (_set("tensors", 0, 3, to=[2**48] * 4), r"tensors\[0\]\.stop"),
    "reversed offsets": (_set("tensors", 0, 4, to=2**40), r"tensors\[0\]\.stop"),
    "an element too many in a tensor": (lambda v: v["tensors"][0].append(1), "length 6"),
    "a tensor that is missing": (lambda v: v["tensors"].pop(0), "belong to no tensor"),
    "a large file taken whole": (_set("files", 1, "header_bytes", to=0), "file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_is_refused_that_has(case: str) -> None:
    change, field = BAD[case]
    with pytest.raises(m.ManifestError, match=field):
        m.decode_manifest(_changed(change))


def test_tensors_that_overlap_are_refused() -> None:
    def change(value: Any) -> None:
        for edge in (4, 5):
            value["tensors"][1][edge] -= 10

    with pytest.raises(m.ManifestError, match="overlap"):
        m.decode_manifest(_changed(change))


def test_a_file_longer_than_its_tensors_is_refused() -> None:
    def change(value: Any) -> None:
        value["files"][1]["size_bytes"] += 10

    with pytest.raises(m.ManifestError, match="belong to no tensor"):
        m.decode_manifest(_changed(change))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 10_000, b"NaN", b"1e999"])
def test_what_is_no_manifest_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(m.ManifestError):
        m.decode_manifest(data)


def test_a_manifest_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(m.ManifestError, match="limit"):
        m.decode_manifest(b" " * (m.MAX_MANIFEST_BYTES + 1))


def test_the_error_names_the_field_and_shows_no_content() -> None:
    with pytest.raises(m.ManifestError) as caught:
        m.decode_manifest(_changed(_set("hidden_size", to="secret")))
    assert caught.value.field == "$.hidden_size"
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_manifest_or_a_manifest_error(data: bytes) -> None:
    with pytest.raises(m.ManifestError):
        m.decode_manifest(data)


_PATHS = st.sampled_from([("files", n, key) for n in range(3) for key in ("path", "size_bytes", "header_bytes")])
_TENSOR_PATHS = st.tuples(st.just("tensors"), st.integers(0, 5), st.integers(0, 5))
_VALUES = st.none() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.lists(st.integers(0, 2**60), max_size=3)


@settings(max_examples=200)
@given(path=_PATHS | _TENSOR_PATHS, value=_VALUES)
def test_one_field_of_any_value_gives_a_sound_manifest_or_a_manifest_error(path: Any, value: Any) -> None:
    try:
        manifest = m.decode_manifest(_changed(_set(*path, to=value)))
    except m.ManifestError:
        return
    for tensor in manifest.tensors:
        file = manifest.files[tensor.file]
        assert file.header_bytes <= tensor.start <= tensor.stop <= file.size_bytes


# ---------------------------------------------------------------- chunks


def test_a_layer_needs_its_own_chunks_the_headers_and_the_small_files() -> None:
    assert m.chunks_of(_manifest(), ["model.layers.2.mlp.weight"]) == {0: [0], 2: [0, 1]}
    assert m.chunks_of(_manifest(), ["model.layers.3.mlp.weight"]) == {0: [0], 2: [0, 1]}
    assert m.chunks_of(_manifest(), ["model.embed_tokens.weight"]) == {0: [0], 1: [0]}


def test_no_tensors_need_only_the_small_files() -> None:
    assert m.chunks_of(_manifest(), []) == {0: [0]}


def test_an_unknown_tensor_is_an_error() -> None:
    with pytest.raises(m.ManifestError, match="no tensor nonsense"):
        m.chunks_of(_manifest(), ["nonsense"])


def test_only_the_last_chunk_of_a_file_is_shorter() -> None:
    manifest = _manifest()
    size = manifest.files[2].size_bytes
    assert m.chunk_span(manifest, 2, 0) == (0, MIB)
    assert m.chunk_span(manifest, 2, 1) == (MIB, size)
    assert m.chunk_span(manifest, 0, 0) == (0, 10)


@given(st.sets(st.sampled_from([tensor.name for tensor in _manifest().tensors])))
def test_the_chunks_cover_every_byte_of_the_tensors_asked_for(names: set[str]) -> None:
    manifest = _manifest()
    spans = {
        file: [m.chunk_span(manifest, file, chunk) for chunk in chunks]
        for file, chunks in m.chunks_of(manifest, names).items()
    }
    for tensor in manifest.tensors:
        if tensor.name in names:
            covered = [(max(start, tensor.start), min(stop, tensor.stop)) for start, stop in spans[tensor.file]]
            assert sum(max(0, stop - start) for start, stop in covered) == tensor.stop - tensor.start


@pytest.mark.parametrize(
    ("size_bytes", "chunk_bytes"), [(1, MIB), (32 * 2**30, MIB), (32 * 2**30 + 1, 2 * MIB), (2**40, 16 * MIB)]
)
def test_the_chunk_size_grows_with_the_model(size_bytes: int, chunk_bytes: int) -> None:
    assert m.chunk_bytes_for([size_bytes]) == chunk_bytes


# ---------------------------------------------------------------- layers


def _layers_in(names: list[str]) -> list[str]:
    return [name.removeprefix("model.").removesuffix(".weight") for name in names]


def test_a_middle_stage_needs_its_layers_only() -> None:
    assert _layers_in(m.tensors_for(_manifest(), LayerRange(1, 3))) == ["layers.1.mlp", "layers.2.mlp"]


def test_the_first_stage_needs_the_embedding_too() -> None:
    assert _layers_in(m.tensors_for(_manifest(), LayerRange(0, 1))) == ["embed_tokens", "layers.0.mlp"]


def test_the_last_stage_needs_norm_and_head() -> None:
    names = m.tensors_for(_manifest(head=True), LayerRange(3, 4))
    assert _layers_in(names) == ["layers.3.mlp", "norm", "lm_head"]


def test_the_last_stage_of_a_tied_model_needs_the_embedding() -> None:
    assert "model.embed_tokens.weight" in m.tensors_for(_manifest(), LayerRange(3, 4))


def _renamed(**names: str) -> m.Manifest:
    manifest = _manifest()
    tensors = [msgspec.structs.replace(t, name=names.get(t.name.split(".")[1], t.name)) for t in manifest.tensors]
    return msgspec.structs.replace(manifest, tensors=tuple(tensors))


def test_a_vision_tower_belongs_to_no_stage() -> None:
    manifest = _renamed(norm="vision_tower.layers.0.weight")
    assert m.parts_of(manifest)["vision_tower.layers.0.weight"] is m.Part.FOREIGN


def test_extra_layers_for_multi_token_prediction_belong_to_no_stage() -> None:
    manifest = _renamed(norm="model.layers.4.norm.weight")
    assert m.parts_of(manifest)["model.layers.4.norm.weight"] is m.Part.FOREIGN


def test_a_model_with_fewer_layers_than_it_says_is_refused() -> None:
    with pytest.raises(m.ManifestError, match="5 numbered layers"):
        m.parts_of(msgspec.structs.replace(_manifest(), num_layers=5))
