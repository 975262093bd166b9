from __future__ import annotations

import os
from pathlib import Path

from client.provision.place import NUM_KEPT, READY, RuntimePlace, place_of, size_bytes


def made(root: Path, identity: str, age_s: float = 0.0) -> RuntimePlace:
    place = RuntimePlace(root, identity)
    place.python.parent.mkdir(parents=True)
    place.python.touch()
    place.mark_ready("{}")
    if age_s:
        now_s = (place.folder / READY).stat().st_mtime
        os.utime(place.folder / READY, (now_s - age_s, now_s - age_s))
    return place


def test_a_runtime_is_ready_only_after_its_self_test(tmp_path: Path) -> None:
    place = RuntimePlace(tmp_path, "one")
    place.python.parent.mkdir(parents=True)
    place.python.touch()
    assert not place.is_ready
    place.mark_ready("{}")
    assert place.is_ready
    assert (tmp_path / "current").read_text() == "one"


def test_a_runtime_whose_interpreter_was_deleted_is_not_ready(tmp_path: Path) -> None:
    place = made(tmp_path, "one")
    place.python.unlink()
    assert not place.is_ready


def test_the_runtime_in_use_and_the_one_before_are_kept(tmp_path: Path) -> None:
    made(tmp_path, "oldest", age_s=200)
    made(tmp_path, "older", age_s=100)
    newest = made(tmp_path, "newest")
    newest.remove_others()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"newest", "older"}
    assert NUM_KEPT == 2


def test_the_runtime_in_use_stays_even_if_it_is_the_oldest(tmp_path: Path) -> None:
    used = made(tmp_path, "used", age_s=500)
    for name in ("a", "b", "c"):
        made(tmp_path, name)
    used.remove_others()
    assert used.is_ready


def test_other_packages_or_other_code_are_another_runtime(tmp_path: Path) -> None:
    wheel, other = tmp_path / "decentllm-1.whl", tmp_path / "decentllm-2.whl"
    wheel.write_bytes(b"one")
    other.write_bytes(b"two")
    identities = {place_of(tmp_path, lock, code).identity for lock in ("a" * 64, "b" * 64) for code in (wheel, other)}
    assert len(identities) == 4
    assert place_of(tmp_path, "a" * 64, wheel) == place_of(tmp_path, "a" * 64, wheel)


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(bytes(1000))
    os.link(tmp_path / "cache" / "file", tmp_path / "also")
    assert size_bytes(tmp_path) == 1000
    assert size_bytes(tmp_path / "nothing") == 0
