from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.models.build import Progress
from coordinator.models.catalog import Catalog, Model
from coordinator.models.errors import (
    BrokenModelError,
    DownloadError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from protocol.manifest import decode_manifest, manifest_hash
from protocol.values import Quantisation
from tests.coordinator.models.conftest import CONFIG, write_json


class Steps(list[str]):
    """A progress callback that remembers the steps."""

    def __call__(self, step: str, done_bytes: int, total_bytes: int) -> None:
        self.append(step)


def _no_fetch(repo_id: str, revision: str | None) -> Path:
    raise DownloadError(repo_id, "no network in tests")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog", fetch=_no_fetch)


def _files_below(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_a_folder_becomes_a_model_that_can_be_served(catalog: Catalog, tiny: Path) -> None:
    model = catalog.add(str(tiny))
    assert model.name == "tiny"
    assert decode_manifest(model.manifest_bytes) == model.manifest
    assert manifest_hash(model.manifest_bytes) == model.manifest_hash
    assert {name: path.parent for name, path in model.files.items()} == dict.fromkeys(model.files, tiny)
    assert list(model.files) == [file.path for file in model.manifest.files]
    assert (model.tokenizer_folder / "tokenizer.json").exists()
    assert model.shape.num_layers == 3


def test_the_users_folder_is_not_touched(catalog: Catalog, tiny: Path) -> None:
    before = _files_below(tiny)
    catalog.add(str(tiny))
    assert _files_below(tiny) == before


def test_the_weights_are_hashed_once(catalog: Catalog, tiny: Path, tmp_path: Path) -> None:
    first = catalog.add(str(tiny))
    steps = Steps()
    assert catalog.add(str(tiny), progress=steps) == first
    assert Catalog(tmp_path / "catalog").open("tiny", progress=steps) == first
    assert steps == []


def test_a_changed_file_is_hashed_again(catalog: Catalog, tiny: Path) -> None:
    first = catalog.add(str(tiny))
    write_json(tiny / "config.json", CONFIG | {"max_position_embeddings": 64})
    second = catalog.open("tiny")
    assert second.manifest.context_length == 64
    assert second.manifest_hash != first.manifest_hash


@pytest.mark.parametrize("file", ["manifest.json", "entry.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{}"), lambda path: path.unlink()])
def test_a_damaged_entry_is_made_again(
    catalog: Catalog, tiny: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    first = catalog.add(str(tiny))
    (path,) = (tmp_path / "catalog" / "entries").glob(f"*/{file}")
    damage(path)
    assert catalog.add(str(tiny)) == first


def test_a_model_can_have_another_name_than_its_folder(catalog: Catalog, tiny: Path) -> None:
    catalog.add(str(tiny), "one")
    catalog.add(str(tiny), "two")
    assert catalog.names() == ["one", "two"]
    assert catalog.open("two").manifest.name == "two"


def test_adding_another_folder_under_a_known_name_replaces_it(catalog: Catalog, tiny: Path, tmp_path: Path) -> None:
    catalog.add(str(tiny))
    other = shutil.copytree(tiny, tmp_path / "other")
    catalog.add(str(other), "tiny")
    assert catalog.names() == ["tiny"]
    assert catalog.open("tiny").folder == other


def test_a_removed_model_is_forgotten_but_its_files_stay(catalog: Catalog, tiny: Path) -> None:
    catalog.add(str(tiny))
    catalog.remove("tiny")
    assert catalog.names() == []
    assert (tiny / "config.json").exists()


@pytest.mark.parametrize("name", ["", "other", "../../etc/passwd", "x" * 300, "a/b@main", "tiny\0"])
def test_an_unknown_name_is_answered_with_the_known_ones(catalog: Catalog, tiny: Path, name: str) -> None:
    catalog.add(str(tiny))
    with pytest.raises(ModelNotFoundError, match="known models: tiny"):
        catalog.open(name)


def test_a_shard_truncated_later_is_refused_by_name(catalog: Catalog, tiny: Path) -> None:
    catalog.add(str(tiny))
    shard = tiny / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(BrokenModelError, match=shard.name):
        catalog.open("tiny")


def test_a_config_that_claims_more_layers_than_there_are_is_refused(catalog: Catalog, tiny: Path) -> None:
    write_json(tiny / "config.json", CONFIG | {"num_hidden_layers": 9})
    with pytest.raises(BrokenModelError, match="9 numbered layers"):
        catalog.add(str(tiny))
    assert catalog.names() == []


def test_a_file_that_cannot_be_read_is_named_without_its_folder(
    catalog: Catalog, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_folder(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "a.safetensors"))

    monkeypatch.setattr("coordinator.models.catalog.check_folder", check_folder)
    with pytest.raises(BrokenModelError) as caught:
        catalog.add(str(tiny))
    assert str(caught.value) == "a.safetensors is damaged or incomplete: it cannot be read (Permission denied)"


def test_a_name_that_messages_could_not_carry_is_changed(catalog: Catalog, tiny: Path) -> None:
    assert catalog.add(str(tiny), "<b>\n&" + "x" * 100).name == "_b___" + "x" * 59


def test_a_hub_model_has_the_hubs_name(tmp_path: Path, tiny: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return tiny

    catalog = Catalog(tmp_path / "catalog", fetch=fetch)
    assert catalog.add("owner/name@v2").name == "owner/name"
    assert asked == [("owner/name", "v2")]


def test_a_hub_that_cannot_be_reached_is_one_sentence(catalog: Catalog) -> None:
    with pytest.raises(ModelError, match="'owner/name' could not be downloaded: no network in tests"):
        catalog.add("owner/name")


def _converting(tmp_path: Path, tiny: Path) -> tuple[Callable[[], Model], list[Path], Path]:
    gguf = tmp_path / "some model.gguf"
    gguf.write_bytes(b"GGUF")
    converted: list[Path] = []

    def convert(source: Path, target: Path, progress: Progress) -> None:
        converted.append(source)
        shutil.copytree(tiny, target)

    return lambda: Catalog(tmp_path / "catalog", convert=convert).add(str(gguf)), converted, gguf


def test_a_gguf_file_is_converted_once(tmp_path: Path, tiny: Path) -> None:
    add, converted, gguf = _converting(tmp_path, tiny)
    assert add().name == "some model"
    assert add() == add()
    assert converted == [gguf]


def test_a_gguf_file_that_was_replaced_is_converted_again(tmp_path: Path, tiny: Path) -> None:
    add, converted, gguf = _converting(tmp_path, tiny)
    add()
    gguf.write_bytes(b"GGUF and more")
    add()
    assert len(converted) == 2


@pytest.mark.parametrize("kind", list(Quantisation))
def test_a_packed_model_is_another_one_than_the_original_beside_it(
    catalog: Catalog, tiny: Path, kind: Quantisation
) -> None:
    original, packed = catalog.add(str(tiny)), catalog.add(f"{tiny}:{kind}")
    assert packed.name == f"tiny-{kind}"
    assert packed.manifest.quantisation is kind
    assert packed.manifest_hash != original.manifest_hash
    assert packed.manifest.files == original.manifest.files, "the bytes are those that were published"
    assert catalog.names() == ["tiny", packed.name]
    assert catalog.open(packed.name) == packed
    assert b"quantisation" not in original.manifest_bytes, "builds that know of none go on"


def test_a_model_that_nodes_could_not_pack_is_refused_by_name_if_it_is_to_be_packed(
    catalog: Catalog, tiny: Path
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "model_type": "llama4_text"}))
    with pytest.raises(UnsupportedModelError, match="weights of a llama4_text model cannot be packed as int4"):
        catalog.add(f"{tiny}:int4")
