"""A disk in memory that can be full, and that forgets at a crash what was not synced, as a real one may."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

from protocol.env import FileFacts

DEFAULT_CAPACITY_BYTES = 2**40


class VirtualDisk:
    """Implements protocol.env.Disk."""

    def __init__(self, rng: random.Random, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self._rng = rng
        self._files: dict[Path, bytearray] = {}
        self._durable: dict[Path, bytes] = {}
        self._unsynced: dict[Path, list[tuple[int, bytes]]] = {}
        self._written: dict[Path, float] = {}
        self._num_writes = 0
        self.private: set[Path] = set()
        """Files that were written by write_private."""

    def read(self, path: Path) -> bytes | None:
        return bytes(self._files[path]) if path in self._files else None

    def read_at(self, path: Path, offset: int, num_bytes: int) -> bytes:
        return bytes(self._file(path)[offset : offset + num_bytes])

    def write_atomic(self, path: Path, data: bytes) -> None:
        self._need(len(data) - len(self._files.get(path, b"")), path)
        self._files[path] = bytearray(data)
        self._durable[path] = bytes(data)
        self._unsynced.pop(path, None)
        self._touch(path)

    def write_private(self, path: Path, data: bytes) -> None:
        self.write_atomic(path, data)
        self.private.add(path)

    def list_files(self, folder: Path) -> dict[str, FileFacts]:
        """A file takes what its size is; it was written to when it was, counted in writes."""
        found = [path for path in sorted(self._files) if folder in path.parents]
        return {
            path.relative_to(folder).as_posix(): FileFacts(len(self._files[path]), self._written[path])
            for path in found
        }

    def reserve(self, path: Path, size_bytes: int) -> None:
        """Room is counted by a file's size, sparse or not: what will not fit is refused early."""
        old = self._files.get(path, bytearray())
        self._need(size_bytes - len(old), path)
        if len(old) != size_bytes:
            self._files[path] = bytearray(old[:size_bytes].ljust(size_bytes, b"\0"))
            self._durable[path] = bytes(self._files[path])
            self._unsynced.pop(path, None)
            self._touch(path)

    def write_at(self, path: Path, offset: int, data: bytes) -> None:
        file = self._file(path)
        self._need(offset + len(data) - len(file), path)
        _put(file, offset, data)
        self._touch(path)
        self._unsynced.setdefault(path, []).append((offset, bytes(data)))

    def sync(self, path: Path) -> None:
        self._durable[path] = bytes(self._file(path))
        self._unsynced.pop(path, None)

    def free_bytes(self, path: Path) -> int:
        return self.capacity_bytes - sum(len(file) for file in self._files.values())

    def remove(self, path: Path) -> None:
        for files in (self._files, self._durable, self._unsynced, self._written):
            files.pop(path, None)  # type: ignore[attr-defined]
        self.private.discard(path)

    def remove_folder(self, folder: Path) -> None:
        for path in [path for path in self._files if folder in path.parents]:
            self.remove(path)

    def paths(self) -> Sequence[Path]:
        return sorted(self._files)

    def crash(self) -> None:
        """Power cut: of the writes since a file's last sync some are there, in any order, and one may be torn."""
        self._files = {path: bytearray(data) for path, data in self._durable.items()}
        for path, writes in self._unsynced.items():
            survivors = [write for write in writes if self._rng.random() < 0.5]
            for offset, data in survivors:
                whole = self._rng.random() < 0.5
                _put(self._files[path], offset, data if whole else data[: self._rng.randrange(len(data) + 1)])
        self._unsynced.clear()
        self._durable = {path: bytes(data) for path, data in self._files.items()}

    def _touch(self, path: Path) -> None:
        self._num_writes += 1
        self._written[path] = float(self._num_writes)

    def _file(self, path: Path) -> bytearray:
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._files[path]

    def _need(self, num_bytes: int, path: Path) -> None:
        if num_bytes > 0 and num_bytes > self.free_bytes(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _put(file: bytearray, offset: int, data: bytes) -> None:
    file.extend(b"\0" * (offset + len(data) - len(file)))
    file[offset : offset + len(data)] = data
