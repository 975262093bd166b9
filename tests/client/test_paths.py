"""The client's folders."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from appdirs import AppDirs

from client import paths
from client.paths import FolderError, private_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr(paths, "_DIRS", AppDirs("decentllm", appauthor=False))
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG variables count on Linux")
def test_the_folders_are_the_platforms_and_different(home: Path) -> None:
    folders = {paths.config_dir(), paths.data_dir(), paths.log_dir()}
    assert len(folders) == 3
    assert all(folder.is_dir() and folder.is_relative_to(home) for folder in folders)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_new_folder_is_for_its_user_only(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b c ü")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert private_folder(tmp_path) == tmp_path


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(FolderError, match="there is a file of that name"):
        private_folder(path)


def test_a_file_above_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="Not a directory"):
        private_folder(tmp_path / "file" / "folder")
