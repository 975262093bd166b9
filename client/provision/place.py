"""Where runtimes lie, and which of them is in use.

runtime/current            the identity of the one in use: replaced in one step, after the self-test
runtime/<identity>/        a virtual environment; ready.json in it says that the self-test has passed
runtime/cache/             uv's cache; the environments share its files, so it costs no space, and an update
                           fetches only what has changed
runtime/python/            an interpreter, if the system has none that suits
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

READY = "ready.json"
NUM_KEPT = 2
"""The one in use and the one before: an update that turns out bad can be undone."""


@dataclass(frozen=True, slots=True)
class RuntimePlace:
    """One runtime, prepared or not. `identity` covers the packages and our own code."""

    root: Path
    identity: str

    @property
    def folder(self) -> Path:
        return self.root / self.identity

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def interpreters(self) -> Path:
        return self.root / "python"

    @property
    def is_ready(self) -> bool:
        return (self.folder / READY).is_file() and self.python.exists()

    def mark_ready(self, facts: str) -> None:
        """The self-test has passed: from now on this one is used."""
        (self.folder / READY).write_text(facts, "utf-8")
        new = self.root / "current.new"
        new.write_text(self.identity, "ascii")
        new.replace(self.root / "current")

    def remove_others(self) -> None:
        """Keep NUM_KEPT runtimes, the newest; those in use are among them."""
        made = [path for path in self.root.iterdir() if (path / READY).is_file()]
        made.sort(key=lambda path: (path != self.folder, -(path / READY).stat().st_mtime))
        for path in made[NUM_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)  # a worker may still run from it: the next preparation tries again


def place_of(data_dir: Path, lock_identity: str, code: Path) -> RuntimePlace:
    """The runtime of this lock with this code (our own wheel, or a source folder)."""
    parts = [lock_identity, str(code) if code.is_dir() else hashlib.sha256(code.read_bytes()).hexdigest()]
    return RuntimePlace(data_dir / "runtime", hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])


def size_bytes(folder: Path) -> int:
    """Bytes of all files below; a file that several names share counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            stat = path.lstat()
        except OSError:  # it was moved while we walked
            continue
        seen[stat.st_dev, stat.st_ino] = 0 if path.is_dir() else stat.st_size
    return sum(seen.values())
