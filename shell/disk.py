"""Files. Blocking: callers go through Env.run_blocking for anything but small files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

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
