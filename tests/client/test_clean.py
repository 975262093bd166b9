from __future__ import annotations

import os
from pathlib import Path

import pytest

from client.clean import CleanError, clean, describe, stored_folders
from client.paths import LOCK_FILE


def nothing() -> None:
    pass


def test_only_folders_that_exist_are_listed_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "data" / "weights").mkdir(parents=True)
    found = stored_folders([tmp_path / "data", tmp_path / "data" / "weights", tmp_path / "none"])
    assert found == [tmp_path / "data"]


def test_the_question_says_what_goes_and_how_large_it_is(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3_000_000))
    assert f"{tmp_path}  (3 MB)" in describe([tmp_path])


def test_everything_stored_is_deleted_and_the_login_entry_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "node-key").touch()
    asked: list[str] = []
    clean([tmp_path / "data"], lambda: asked.append("autostart"))
    assert not (tmp_path / "data").exists()
    assert asked == ["autostart"]


def test_nothing_is_deleted_while_the_app_runs(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(f"{os.getpid()}\ndecentllm\nhost\n")
    with pytest.raises(CleanError, match="quit it first"):
        clean([tmp_path], nothing)
    assert tmp_path.exists()


@pytest.mark.parametrize("left", ["4194999\ndecentllm\n", "", "not a number"])
def test_a_lock_that_a_killed_app_left_does_not_count(tmp_path: Path, left: str) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / LOCK_FILE).write_text(left)
    clean([tmp_path / "config"], nothing)
    assert not (tmp_path / "config").exists()


def test_what_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("client.clean.shutil.rmtree", refuse)
    with pytest.raises(CleanError, match=str(tmp_path)):
        clean([tmp_path], nothing)
