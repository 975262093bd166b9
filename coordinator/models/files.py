"""Which files of a model's folder may be read: regular ones, of the folder itself, of a bearable size.

A folder may be anybody's download. A link, a pipe or a device in it could make the mirror hand out what was never
meant to be public, or wait for ever.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from coordinator.models.errors import BrokenModelError

MAX_JSON_BYTES = 64 * 2**20


def regular_file(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, None if there is none; raises BrokenModelError if it is no regular file.

    One kind of link is followed: huggingface_hub's cache keeps `snapshots/<revision>/<name>` as links to
    `blobs/<digest>` of the same model."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise BrokenModelError(name, "it is not a plain file name")
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        path, mode = _hub_blob(folder, path)
    if not stat.S_ISREG(mode):
        raise BrokenModelError(name, "it is not a regular file (links, pipes and devices are refused)")
    return path


def _hub_blob(folder: Path, link: Path) -> tuple[Path, int]:
    target = link.resolve()
    blobs = folder.absolute().parent.parent / "blobs"
    if folder.absolute().parent.name != "snapshots" or target.parent != blobs.resolve() or not target.exists():
        raise BrokenModelError(link.name, "it is a link; put the file itself into the folder")
    return target, target.lstat().st_mode


def required_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in JSON file `name`; raises BrokenModelError if it is missing or anything else."""
    found = optional_json(folder, name)
    if found is None:
        raise BrokenModelError(name, "the folder does not have it")
    return found


def optional_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The object in JSON file `name`, None if there is no such file; raises BrokenModelError for anything else."""
    path = regular_file(folder, name)
    if path is None:
        return None
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BrokenModelError(name, f"{size} bytes, limit {MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError):
        raise BrokenModelError(name, "it is not valid JSON") from None
    if not isinstance(value, dict):
        raise BrokenModelError(name, "it is not a JSON object")
    return value
