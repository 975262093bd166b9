from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.models.build import build_manifest, check_folder
from coordinator.models.errors import BrokenModelError, ModelNotFoundError, UnsupportedModelError
from protocol.manifest import chunk_span, decode_manifest, encode_manifest
from tests.coordinator.models.conftest import write_json

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def _index(folder: Path) -> Any:
    return json.loads((folder / INDEX).read_text())


def test_every_digest_is_that_of_its_chunk(tiny: Path) -> None:
    with (tiny / FIRST).open("r+b") as file:
        file.seek(0, 2)
    manifest = build_manifest(check_folder(tiny), "tiny", lambda *_: None)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    for number, file in enumerate(manifest.files):
        data = (tiny / file.path).read_bytes()
        for chunk, digest in enumerate(file.chunk_digests):
            start, stop = chunk_span(manifest, number, chunk)
            assert hashlib.sha256(data[start:stop]).hexdigest() == digest


def test_a_file_of_several_chunks_has_several_digests(tiny: Path) -> None:
    (tiny / INDEX).unlink()
    layers = {f"model.layers.{n}.w": np.zeros((700, 700), np.float32) for n in range(3)}
    save_file(layers, tiny / "model.safetensors")
    manifest = build_manifest(check_folder(tiny), "tiny", lambda *_: None)
    assert [len(file.chunk_digests) for file in manifest.files] == [1, 6]


def test_the_manifest_has_the_weights_and_the_small_files_but_not_the_tokenizer(tiny: Path) -> None:
    manifest = build_manifest(check_folder(tiny), "tiny", lambda *_: None)
    assert [file.path for file in manifest.files] == ["config.json", FIRST, SECOND, INDEX]
    assert [file.header_bytes > 0 for file in manifest.files] == [False, True, True, False]


def test_progress_counts_up_to_the_size_of_all_files(tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    checked = check_folder(tiny)
    build_manifest(checked, "tiny", lambda step, done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in checked.files.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        check_folder(tmp_path / "nothing")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".npy", ".h5"])
def test_weights_that_can_run_code_are_refused(tiny: Path, suffix: str) -> None:
    for name in (INDEX, FIRST, SECOND):
        (tiny / name).unlink()
    (tiny / f"pytorch_model{suffix}").touch()
    with pytest.raises(UnsupportedModelError, match="only safetensors files are served"):
        check_folder(tiny)


def test_a_folder_with_a_gguf_file_is_told_how_to_add_it(tiny: Path) -> None:
    for name in (INDEX, FIRST, SECOND):
        (tiny / name).unlink()
    (tiny / "a.gguf").touch()
    with pytest.raises(UnsupportedModelError, match=r"to convert a\.gguf, give that file"):
        check_folder(tiny)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no safetensors file"):
        check_folder(tmp_path)


def test_several_weight_files_without_an_index_are_refused(tiny: Path) -> None:
    (tiny / INDEX).unlink()
    with pytest.raises(UnsupportedModelError, match="2 safetensors files but no"):
        check_folder(tiny)


def test_a_missing_tokenizer_is_refused(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        check_folder(tiny)


def test_a_missing_shard_is_named(tiny: Path) -> None:
    (tiny / SECOND).unlink()
    with pytest.raises(BrokenModelError, match=f"{SECOND} is damaged or incomplete"):
        check_folder(tiny)


def test_a_truncated_shard_is_named(tiny: Path) -> None:
    data = (tiny / SECOND).read_bytes()
    (tiny / SECOND).write_bytes(data[:-1])
    with pytest.raises(BrokenModelError, match=rf"{SECOND} .*tensor .*truncated"):
        check_folder(tiny)


def test_a_shard_that_is_a_link_is_refused(tiny: Path) -> None:
    (tiny / SECOND).rename(tiny / "elsewhere")
    (tiny / SECOND).symlink_to(tiny / "elsewhere")
    with pytest.raises(BrokenModelError, match="it is a link"):
        check_folder(tiny)


def test_a_tensor_that_the_index_promises_must_be_there(tiny: Path) -> None:
    index = _index(tiny)
    index["weight_map"]["model.layers.9.w"] = FIRST
    write_json(tiny / INDEX, index)
    with pytest.raises(BrokenModelError, match=r"tensor model\.layers\.9\.w is missing"):
        check_folder(tiny)


def test_a_tensor_in_two_files_is_refused(tiny: Path) -> None:
    shutil.copy(tiny / FIRST, tiny / SECOND)
    with pytest.raises(BrokenModelError, match=r"is in .* too"):
        check_folder(tiny)


@pytest.mark.parametrize("value", ["../../etc/passwd", "model.bin", 3, "a/b.safetensors"])
def test_an_index_that_names_anything_but_safetensors_of_this_folder_is_refused(tiny: Path, value: object) -> None:
    write_json(tiny / INDEX, {"weight_map": {"x": value}})
    with pytest.raises(BrokenModelError):
        check_folder(tiny)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_weights_is_refused(tiny: Path, index: object) -> None:
    write_json(tiny / INDEX, index)
    with pytest.raises(BrokenModelError, match="no weight_map"):
        check_folder(tiny)


def test_the_fingerprint_changes_with_a_file(tiny: Path) -> None:
    before = check_folder(tiny).fingerprint()
    assert check_folder(tiny).fingerprint() == before
    shutil.copy(tiny / FIRST, tiny / "copy")
    (tiny / "copy").replace(tiny / FIRST)
    assert check_folder(tiny).fingerprint() != before
