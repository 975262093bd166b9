"""One coordinator per folder. Two would write the same database, serve half of the nodes each and overwrite site.json.

The lock is the operating system's, on an open file: it ends with the process, however that ends, and nothing is left
over that somebody would have to remove."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.config import ConfigError
from coordinator.private_files import PRIVATE_FILE, make_private_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = "coordinator.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder. Raises ConfigError when another coordinator does."""
    make_private_folder(folder)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), PRIVATE_FILE)
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a coordinator runs there now. Makes no file."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    try:
        _take(descriptor, folder)
    except ConfigError:
        return True
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is Windows' word for it
        sentence = f"Another coordinator runs in {folder}: stop it, or choose another folder with --data-dir."
        raise ConfigError(sentence) from None
