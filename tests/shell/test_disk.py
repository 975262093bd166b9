"""Files on a real disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from protocol.env import Disk
from shell.disk import LocalDisk

DISK: Disk = LocalDisk()


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert DISK.read(tmp_path / "nothing") is None
    assert DISK.read(tmp_path / "no" / "folder") is None
    DISK.remove(tmp_path / "nothing")


def test_an_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    DISK.write_atomic(path, b"old")
    DISK.write_atomic(path, b"new")
    assert DISK.read(path) == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_an_atomic_write_that_fails_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    DISK.write_atomic(path, b"old")
    (tmp_path / "file.part").mkdir()
    with pytest.raises(OSError):
        DISK.write_atomic(path, b"new")
    assert DISK.read(path) == b"old"


def test_a_reserved_file_is_written_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "weights"
    DISK.reserve(path, 10)
    DISK.write_at(path, 6, b"wxyz")
    DISK.write_at(path, 0, b"ab")
    DISK.sync(path)
    assert DISK.read(path) == b"ab\0\0\0\0wxyz"
    assert DISK.read_at(path, 6, 2) == b"wx"
    assert DISK.read_at(path, 9, 5) == b"z"


def test_reserving_again_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    DISK.reserve(path, 4)
    DISK.write_at(path, 0, b"abcd")
    DISK.reserve(path, 4)
    assert DISK.read(path) == b"abcd"
    DISK.reserve(path, 2)
    assert DISK.read(path) == b"ab"


def test_a_reserved_file_takes_no_room(tmp_path: Path) -> None:
    DISK.reserve(tmp_path / "large", 2**30)
    stat = (tmp_path / "large").stat()
    assert stat.st_size == 2**30
    assert stat.st_blocks * 512 < 2**20


def test_free_room_is_known_for_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    assert DISK.free_bytes(tmp_path / "a" / "b" / "c") > 0


def test_removing_frees_the_name(tmp_path: Path) -> None:
    DISK.write_atomic(tmp_path / "file", b"x")
    DISK.remove(tmp_path / "file")
    assert DISK.read(tmp_path / "file") is None


# ---------------------------------------------------------------- private files, folders


def test_a_private_file_is_for_this_user_only_whatever_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    DISK.write_private(path, b"first")
    path.chmod(0o644)
    (path.with_name("key.part")).write_bytes(b"left over")
    DISK.write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_files_are_listed_with_the_room_they_really_take(tmp_path: Path) -> None:
    DISK.reserve(tmp_path / "sparse", 10**9)
    DISK.write_atomic(tmp_path / "folder" / "full", b"x" * 100_000)
    (tmp_path / "link").symlink_to("/etc")
    os.utime(tmp_path / "sparse", (5, 7))
    found = DISK.list_files(tmp_path)
    assert set(found) == {"sparse", "folder/full"}
    assert found["sparse"].used_bytes < 10**6
    assert found["sparse"].written_s == 7
    assert 100_000 <= found["folder/full"].used_bytes < 10**6


def test_a_folder_that_is_not_there_has_no_files_and_is_removed_already(tmp_path: Path) -> None:
    assert DISK.list_files(tmp_path / "none") == {}
    DISK.remove_folder(tmp_path / "none")


def test_a_folder_is_removed_with_what_is_in_it_but_not_what_its_links_point_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    DISK.write_atomic(outside / "file", b"x")
    DISK.write_atomic(tmp_path / "folder" / "deep" / "file", b"x")
    (tmp_path / "folder" / "link").symlink_to(outside)
    DISK.remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert (outside / "file").exists()
