"""`decentllm clean`: delete everything that the app has stored for this user. The app itself stays installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from client.errors import ClientError
from client.paths import LOCK_FILE
from client.provision.place import size_bytes


class CleanError(ClientError):
    title = "Not everything could be deleted"


def stored_folders(candidates: Sequence[Path]) -> list[Path]:
    """Those that exist, none inside another."""
    there = sorted({path.resolve() for path in candidates if path.is_dir()})
    return [path for path in there if not any(other in path.parents for other in there)]


def describe(folders: Sequence[Path]) -> str:
    """What is there, for the question before it is deleted."""
    lines = [f"  {path}  ({size_bytes(path) / 1e6:,.0f} MB)" for path in folders]
    return "\n".join(["This deletes weights, the runtime, settings, logs and this computer's identity:", *lines])


def clean(folders: Sequence[Path], remove_autostart: Callable[[], None]) -> None:
    """Delete. Raises CleanError while the app runs, or naming what is left."""
    if any(_has_running_app(path) for path in folders):
        raise CleanError("app_running", "DecentLLM is running: quit it first, then clean.")
    remove_autostart()
    left = [path for path in folders if not _deleted(path)]
    if left:
        raise CleanError("left_over", f"These could not be deleted: {', '.join(map(str, left))}.")


def _has_running_app(folder: Path) -> bool:
    """The app's lock file begins with its process id (QLockFile); one that was killed leaves the file behind."""
    try:
        pid = int((folder / LOCK_FILE).read_text("utf-8", "replace").split("\n")[0])
    except (OSError, ValueError):
        return False
    return psutil.pid_exists(pid)


def _deleted(folder: Path) -> bool:
    try:
        shutil.rmtree(folder)
    except OSError:
        return False
    return True
