"""Files. Blocking: callers go through Env.run_blocking for anything but small files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from protocol.env import FileFacts

BLOCK_BYTES = 512
"""What st_blocks counts in (POSIX leaves it open; Linux and macOS use this)."""


class LocalDisk:
    def read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def read_at(self, path: Path, offset: int, num_bytes: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(num_bytes)

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Write beside the file, then rename over it: rename is atomic within a file system (POSIX rename)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data, 0o666)

    def write_private(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _part_of(path).unlink(missing_ok=True)  # one that was left over would keep its mode
        _replace(path, data, 0o600)

    def list_files(self, folder: Path) -> dict[str, FileFacts]:
        found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return {path.relative_to(folder).as_posix(): _facts(path) for path in found}

    def reserve(self, path: Path, size_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() != size_bytes:
                file.truncate(size_bytes)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def sync(self, path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def free_bytes(self, path: Path) -> int:
        """Free space of the file system that holds the nearest existing parent of `path`."""
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        return shutil.disk_usage(existing).free

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        """Links in it are removed, what they point to is not."""
        if folder.exists():
            shutil.rmtree(folder)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _replace(path: Path, data: bytes, mode: int) -> None:
    temporary = _part_of(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk, mostly: a half must not take what room there is
        temporary.unlink(missing_ok=True)
        raise


def _facts(path: Path) -> FileFacts:
    found = path.stat()
    blocks = getattr(found, "st_blocks", None)  # Windows has none
    return FileFacts(found.st_size if blocks is None else blocks * BLOCK_BYTES, found.st_mtime)
