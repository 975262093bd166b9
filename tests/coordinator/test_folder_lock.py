"""Two coordinators never share a folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coordinator.config import ConfigError
from coordinator.folder_lock import LOCK_FILE, is_locked, locked


def test_a_second_coordinator_in_the_same_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=r"Another coordinator runs in .*--data-dir"),
        locked(tmp_path),
    ):
        pytest.fail("the folder was locked")


def test_a_folder_is_free_again_when_its_coordinator_has_ended(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_the_folder_and_the_lock_are_for_their_owner_only(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "new" / LOCK_FILE).stat().st_mode) == 0o600


def test_other_folders_are_not_concerned(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_whether_a_coordinator_runs_there_is_seen_without_making_anything(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
