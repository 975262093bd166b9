"""The pool's models: what was added, from which folder, and its manifest.

The catalog's own folder holds `entries/<key>/` (entry.json, manifest.json) and `converted/` (models made from GGUF
files). Models stay where they are: a user's folder is only read. A manifest is made once, for it takes reading
every byte; it is made anew when a file's size or time of change differs from what the entry says.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.models.build import CheckedFolder, Progress, build_manifest, check_folder
from coordinator.models.config import UNPACKED, packing_of, refuse_unpackable
from coordinator.models.errors import BrokenModelError, ModelNotFoundError, shown
from coordinator.models.files import optional_json
from coordinator.models.shape import ModelShape, model_shape
from coordinator.models.sources import (
    Convert,
    Fetch,
    FolderSource,
    GgufSource,
    fetch_snapshot,
    resolve,
    run_converter,
    split_quantisation,
)
from coordinator.models.tokenizer import ChatTokenizer
from protocol.manifest import Manifest, ManifestError, decode_manifest, encode_manifest, manifest_hash
from protocol.values import ManifestHash, Quantisation

_NOT_IN_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069<>\"'&]")
"""What the wire forbids (protocol.values.Name), and what would turn a line of text around or break it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to be served. `files` maps each file of the manifest to where it lies on disk."""

    name: str
    folder: Path
    manifest: Manifest
    manifest_bytes: bytes
    manifest_hash: ManifestHash
    files: Mapping[str, Path]
    shape: ModelShape

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """entry.json: which files the manifest beside it was made from."""

    name: str
    folder: str
    manifest_hash: str
    fingerprint: list[list[str | int]]
    quantisation: Quantisation | None = None


def no_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    """For callers that show none."""


class Catalog:
    """The models known to this pool. Its methods read disks and networks: call them off the event loop."""

    def __init__(self, folder: Path, *, fetch: Fetch = fetch_snapshot, convert: Convert = run_converter) -> None:
        self._entries = folder / "entries"
        self._converted = folder / "converted"
        self._fetch = fetch
        self._convert = convert

    def add(self, spec: str, name: str | None = None, progress: Progress = no_progress) -> Model:
        """Add what `spec` means (`sources.resolve`): a folder, a .gguf file or a hub id, each with `:int8` or `:int4`
        behind it if its weights are to be packed.

        A model known under the same name is replaced. Raises ModelError, always with a sentence for people."""
        spec, quantisation = split_quantisation(spec)
        folder, own_name = self._folder(spec, progress)
        suffix = f"-{quantisation}" if quantisation else ""
        return self._make(folder, _clean_name(name or own_name, suffix if name is None else ""), progress, quantisation)

    def _folder(self, spec: str, progress: Progress) -> tuple[Path, str]:
        """Where the model lies, or is put by this, and what it is called there."""
        source = resolve(spec)
        if isinstance(source, FolderSource):
            return self._plain(source.path.absolute(), progress), source.path.absolute().name
        if isinstance(source, GgufSource):
            return self._converted_folder(source.path, progress), source.path.stem
        progress("downloading", 0, 0)
        return self._plain(self._fetch(source.repo_id, source.revision).absolute(), progress), source.repo_id

    def _plain(self, folder: Path, progress: Progress) -> Path:
        """The folder, or if its weights are packed in a way that can be undone, the one that they are unpacked to."""
        is_packed = packing_of(optional_json(folder, "config.json") or {}) in UNPACKED
        return self._converted_folder(folder, progress) if is_packed else folder

    def _converted_folder(self, path: Path, progress: Progress) -> Path:
        """A GGUF file's or a packed folder's, which is converted if that has not been done yet."""
        target = self._converted / _converted_name(path)
        if not target.exists():
            self._convert(path.absolute(), target, progress)
        return target.absolute()

    def names(self) -> list[str]:
        """Names of all models added, sorted."""
        return sorted(entry.name for entry in self._known().values())

    def open(self, name: str, progress: Progress = no_progress) -> Model:
        """The model of that name; its files are checked again. Raises ModelError.

        `name` is compared with the known names and is never part of a path."""
        for entry in self._known().values():
            if entry.name == name:
                return self._make(Path(entry.folder), name, progress, entry.quantisation)
        known = ", ".join(self.names()) or "none yet"
        raise ModelNotFoundError(name, f"known models: {known}")

    def remove(self, name: str) -> None:
        """Forget a model; its files stay. Forgetting an unknown one does nothing."""
        for path, entry in self._known().items():
            if entry.name == name:
                shutil.rmtree(path)

    def _make(self, folder: Path, name: str, progress: Progress, quantisation: Quantisation | None) -> Model:
        path = self._entries / _key(name, str(folder))
        try:
            checked = check_folder(folder)
            cached = _cached_manifest(path, checked, name, quantisation)
            data = cached or _encode(checked, name, progress, quantisation)
        except OSError as error:
            raise BrokenModelError(
                Path(str(error.filename or folder)).name, f"it cannot be read ({error.strerror})"
            ) from None
        model = _model(checked, data)
        self.remove(name)
        _write_entry(path, _Entry(name, str(folder), model.manifest_hash, checked.fingerprint(), quantisation), data)
        return model

    def _known(self) -> dict[Path, _Entry]:
        found = {path.parent: _read_entry(path) for path in sorted(self._entries.glob("*/entry.json"))}
        return {path: entry for path, entry in found.items() if entry is not None}


def _model(checked: CheckedFolder, data: bytes) -> Model:
    manifest = decode_manifest(data)
    try:
        shape = model_shape(manifest, checked.config.kv_numel_per_token)
    except ManifestError as error:
        raise BrokenModelError("config.json", error.detail) from None
    return Model(manifest.name, checked.folder, manifest, data, manifest_hash(data), checked.files, shape)


def _encode(checked: CheckedFolder, name: str, progress: Progress, quantisation: Quantisation | None) -> bytes:
    ChatTokenizer.load(checked.folder)  # a catalog does not take what the pool could not serve
    if quantisation:
        refuse_unpackable(name, checked.config.text, quantisation)
    try:
        return encode_manifest(build_manifest(checked, name, progress, quantisation))
    except ManifestError as error:
        raise BrokenModelError(checked.folder.name, f"{error.field}: {error.detail}") from None


def _cached_manifest(path: Path, checked: CheckedFolder, name: str, quantisation: Quantisation | None) -> bytes | None:
    """The manifest made before, if it is of these very files and of this name."""
    entry = _read_entry(path / "entry.json")
    if entry is None or (entry.name, entry.quantisation) != (name, quantisation):
        return None
    if entry.fingerprint != checked.fingerprint():
        return None
    try:
        data = (path / "manifest.json").read_bytes()
    except FileNotFoundError:
        return None
    return data if manifest_hash(data) == entry.manifest_hash else None


def _read_entry(path: Path) -> _Entry | None:
    """None if it is missing or not readable as an entry: then the manifest is made again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Entry)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeError):
        return None


def _write_entry(path: Path, entry: _Entry, data: bytes) -> None:
    path.mkdir(parents=True, exist_ok=True)
    _replace(path / "manifest.json", data)
    _replace(path / "entry.json", msgspec.json.encode(entry))


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_bytes(data)
    partial.replace(path)


def _converted_name(path: Path) -> str:
    """Differs when the file, or one of the folder's, was replaced by another of the same name."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:64].lstrip(".") or "model"
    parts = [str(number) for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]
    return f"{stem}-{_key(os.path.realpath(path), *parts)}"


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _clean_name(name: str, suffix: str) -> str:
    cleaned = _NOT_IN_NAME.sub("_", name)[: 64 - len(suffix)] + suffix
    if not cleaned.strip():
        raise ModelNotFoundError(shown(name), "a model's name cannot be empty")
    return cleaned
