"""Where the client keeps its files. The folders are made when first asked for, for this user only."""

from __future__ import annotations

from pathlib import Path

from appdirs import AppDirs

# appauthor=False: no extra folder named after an author on Windows.
_DIRS = AppDirs("decentllm", appauthor=False)

LOCK_FILE = "gui.lock"
"""In the settings' folder; the running app holds it (QLockFile)."""


class FolderError(Exception):
    """A folder cannot be used; the sentence says which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"The folder {self.path} cannot be used: {self.reason}."


def config_dir() -> Path:
    """Settings and the node's identity."""
    return private_folder(Path(_DIRS.user_config_dir))


def data_dir() -> Path:
    """Weights: large, and can be fetched again."""
    return private_folder(Path(_DIRS.user_data_dir))


def log_dir() -> Path:
    return private_folder(Path(_DIRS.user_log_dir))


def all_folders() -> tuple[Path, ...]:
    """All of them, whether they exist or not; none is made."""
    return tuple(Path(p) for p in (_DIRS.user_config_dir, _DIRS.user_data_dir, _DIRS.user_log_dir))


def private_folder(path: Path) -> Path:
    """The folder, made with mode 0700 if there is none. Raises FolderError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise FolderError(path, "there is a file of that name") from None
    except OSError as error:
        raise FolderError(path, error.strerror or str(error)) from None
    return path
