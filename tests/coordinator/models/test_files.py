from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator.models.errors import BrokenModelError
from coordinator.models.files import optional_json, regular_file, required_json


def test_a_regular_file_is_found_and_a_missing_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert regular_file(tmp_path, "a") == tmp_path / "a"
    assert regular_file(tmp_path, "b") is None


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "sub/a", "..", ".", ""])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BrokenModelError, match="not a plain file name"):
        regular_file(tmp_path, name)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(BrokenModelError, match="it is a link"):
        regular_file(tmp_path, "a")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_and_a_folder_are_refused(tmp_path: Path, make: object) -> None:
    make(tmp_path / "a")  # type: ignore[operator]
    with pytest.raises(BrokenModelError, match="not a regular file"):
        regular_file(tmp_path, "a")


def _hub_cache(tmp_path: Path) -> Path:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "123").write_text("{}")
    return snapshot


def test_the_links_of_the_hub_librarys_cache_are_followed_to_the_same_models_blobs(tmp_path: Path) -> None:
    snapshot = _hub_cache(tmp_path)
    (snapshot / "config.json").symlink_to("../../blobs/123")
    assert regular_file(snapshot, "config.json") == tmp_path / "models--a--b" / "blobs" / "123"
    assert required_json(snapshot, "config.json") == {}


@pytest.mark.parametrize("target", ["../../../secret", "../../blobs/missing", "/etc/passwd"])
def test_other_links_in_that_cache_are_refused(tmp_path: Path, target: str) -> None:
    snapshot = _hub_cache(tmp_path)
    (tmp_path / "secret").touch()
    (snapshot / "config.json").symlink_to(target)
    with pytest.raises(BrokenModelError, match="it is a link"):
        regular_file(snapshot, "config.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}"])
def test_what_is_not_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(BrokenModelError, match=r"a\.json is damaged or incomplete: it is not valid JSON"):
        optional_json(tmp_path, "a.json")


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BrokenModelError, match="not a JSON object"):
        optional_json(tmp_path, "a.json")


def test_a_missing_file_is_refused_only_where_it_is_required(tmp_path: Path) -> None:
    assert optional_json(tmp_path, "a.json") is None
    with pytest.raises(BrokenModelError, match="does not have it"):
        required_json(tmp_path, "a.json")


def test_a_huge_json_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(BrokenModelError, match="limit 67108864"):
        optional_json(tmp_path, "a.json")
