"""Files and folders for their owner's eyes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from coordinator.private_files import make_private_folder, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "folder" / "file", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "file").read_bytes() == b"secret"
    assert mode(tmp_path / "folder" / "file") == 0o600
    assert mode(tmp_path / "folder") == 0o700


def test_a_file_that_was_readable_for_others_is_private_after_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_interrupted_write_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"half")
    (tmp_path / "file.part").chmod(0o666)
    write_private(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert mode(tmp_path / "file") == 0o600


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o750)
    make_private_folder(shared)
    assert mode(shared) == 0o750
    make_private_folder(shared / "a" / "b")
    assert mode(shared / "a" / "b") == 0o700
