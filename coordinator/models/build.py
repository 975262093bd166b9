"""Makes the manifest of a model's folder: checks every file, then hashes every chunk once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coordinator.models.config import ModelConfig, read_config
from coordinator.models.errors import BrokenModelError, ModelNotFoundError, UnsupportedModelError, shown
from coordinator.models.files import optional_json, regular_file
from coordinator.models.safetensors_header import Header, read_header
from coordinator.models.tokenizer import check_tokenizer_files
from protocol.manifest import Manifest, ManifestFile, chunk_bytes_for, num_chunks
from protocol.values import Quantisation

INDEX_FILE = "model.safetensors.index.json"
SMALL_FILES = ("config.json", INDEX_FILE)
UNSAFE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".npz", ".h5", ".msgpack"})

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes are done and how many there are (0: not known)."""


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A folder that can be served: its files by name, and the headers of those that hold weights."""

    folder: Path
    config: ModelConfig
    files: Mapping[str, Path]
    headers: Mapping[str, Header]

    def fingerprint(self) -> list[list[str | int]]:
        """Name, size and time of change of each file: what is unlike when a file was replaced."""
        stats = {name: path.stat() for name, path in self.files.items()}
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]


def check_folder(folder: Path) -> CheckedFolder:
    """Check that `folder` has a model that can be served, whole; reads headers only, no weights.

    Raises ModelNotFoundError, UnsupportedModelError or BrokenModelError."""
    if not folder.is_dir():
        raise ModelNotFoundError(folder.name, "there is no such folder")
    weights = weight_files(folder)
    config = read_config(folder)
    check_tokenizer_files(folder)
    small = {name: path for name in SMALL_FILES if (path := regular_file(folder, name)) is not None}
    files = dict(sorted((small | weights).items()))
    numbers = {name: number for number, name in enumerate(files)}
    headers = {name: read_header(path, name, numbers[name]) for name, path in weights.items()}
    _check_index(folder, headers)
    return CheckedFolder(folder, config, files, headers)


def build_manifest(
    checked: CheckedFolder, name: str, progress: Progress, quantisation: Quantisation | None = None
) -> Manifest:
    """Hash all files of a checked folder; reads every byte once. Raises BrokenModelError, OSError."""
    sizes = {file: path.stat().st_size for file, path in checked.files.items()}
    chunk_bytes = chunk_bytes_for(sizes.values())
    hasher = _Hasher(chunk_bytes, sum(sizes.values()), progress)
    config = checked.config
    return Manifest(
        version=1,
        name=name,
        architecture=config.architecture,
        config_json=config.text,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        chunk_bytes=chunk_bytes,
        files=tuple(hasher.file(file, path, checked.headers.get(file)) for file, path in checked.files.items()),
        tensors=tuple(tensor for header in checked.headers.values() for tensor in header.tensors),
        quantisation=quantisation,
    )


class _Hasher:
    """Digests of the chunks of one file after the other, with progress over all of them."""

    def __init__(self, chunk_bytes: int, total_bytes: int, progress: Progress) -> None:
        self._chunk_bytes = chunk_bytes
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._progress = progress

    def file(self, name: str, path: Path, header: Header | None) -> ManifestFile:
        size = path.stat().st_size
        with path.open("rb") as source:
            count = num_chunks(size, self._chunk_bytes)
            digests = tuple(self._chunk(source.read(self._chunk_bytes)) for _ in range(count))
        return ManifestFile(name, size, digests, header.header_bytes if header else 0)

    def _chunk(self, data: bytes) -> str:
        self._done_bytes += len(data)
        self._progress("checking weights", self._done_bytes, self._total_bytes)
        return hashlib.sha256(data).hexdigest()


def weight_files(folder: Path) -> dict[str, Path]:
    """The folder's safetensors files that belong to the model, by name.

    Raises BrokenModelError or UnsupportedModelError."""
    names = _indexed(folder) or _unindexed(folder)
    found = {name: regular_file(folder, name) for name in sorted(names)}
    for name, path in found.items():
        if path is None:
            raise BrokenModelError(name, f"{INDEX_FILE} names it, but the folder does not have it")
    return {name: path for name, path in found.items() if path is not None}


def _indexed(folder: Path) -> set[str]:
    index = optional_json(folder, INDEX_FILE)
    if index is None:
        return set()
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenModelError(INDEX_FILE, "it has no weight_map")
    for file in weight_map.values():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise BrokenModelError(INDEX_FILE, f"{shown(file)!r} is not the name of a safetensors file")
    return set(weight_map.values())


def _unindexed(folder: Path) -> set[str]:
    names = {path.name for path in folder.iterdir() if path.suffix == ".safetensors"}
    if "model.safetensors" in names:
        return {"model.safetensors"}
    if not names:
        raise UnsupportedModelError(folder.name, _why_no_weights(folder))
    if len(names) > 1:
        reason = f"it has {len(names)} safetensors files but no {INDEX_FILE} that says which belong together"
        raise UnsupportedModelError(folder.name, reason)
    return names


def _why_no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    unsafe = [name for name in names if Path(name).suffix in UNSAFE_SUFFIXES]
    if unsafe:
        return f"only safetensors files are served, and it has {shown(unsafe[0])} (reading such a file can run code)"
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"only safetensors files are served; to convert {shown(gguf[0])}, give that file instead of its folder"
    return "it has no safetensors file"


def _check_index(folder: Path, headers: Mapping[str, Header]) -> None:
    """Each tensor is in one file only, and every tensor that the index promises is in the file it names."""
    holder: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            if holder.setdefault(tensor.name, file) != file:
                raise BrokenModelError(file, f"tensor {shown(tensor.name)} is in {holder[tensor.name]} too")
    index = optional_json(folder, INDEX_FILE) or {}
    for tensor_name, file in index.get("weight_map", {}).items():
        if holder.get(tensor_name) != file:
            raise BrokenModelError(file, f"tensor {shown(tensor_name)} is missing, although {INDEX_FILE} promises it")
