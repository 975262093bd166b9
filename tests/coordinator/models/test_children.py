"""Downloads and conversions in processes of their own, which can be ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from coordinator.models import children
from coordinator.models.children import Children, StoppedError
from coordinator.models.errors import ConversionError, DownloadError


@pytest.fixture
def steps() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture
def kids(steps: list[tuple[str, int, int]]) -> Children:
    return Children(lambda *step: steps.append(step))


def plays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, script: str) -> None:
    """Let the child be this script."""
    package = tmp_path / "coordinator" / "models"
    package.mkdir(parents=True)
    (package / f"{module}.py").write_text(script)
    monkeypatch.setattr(children, "PACKAGE_ROOT", tmp_path)


def no_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    return


def test_what_a_child_says_as_it_goes_is_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kids: Children, steps: list[tuple[str, int, int]]
) -> None:
    lines = [
        "a library's noise",
        '{"step": "downloading", "done_bytes": 5, "total_bytes": 10}',
        "[1, 2]",
        '{"step": "checking"}',
        '{"step": 5}',
        '{"done": "/models/x"}',
    ]
    plays(monkeypatch, tmp_path, "fetch", f"print({chr(10).join(lines)!r})")
    assert kids.fetch("owner/name", None) == Path("/models/x")
    assert steps == [("downloading", 5, 10), ("checking", 0, 0)]


def test_a_revision_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kids: Children) -> None:
    plays(monkeypatch, tmp_path, "fetch", "import json, sys; print(json.dumps({'done': ' '.join(sys.argv[1:])}))")
    assert str(kids.fetch("owner/name", "v1")) == "owner/name --revision v1"
    assert str(kids.fetch("owner/name", None)) == "owner/name"


def test_the_childs_own_sentence_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kids: Children) -> None:
    plays(monkeypatch, tmp_path, "fetch", 'print(\'{"error": "too far away"}\'); raise SystemExit(1)')
    with pytest.raises(DownloadError, match="'owner/name' could not be downloaded: too far away"):
        kids.fetch("owner/name", None)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"status -9 .*too little memory"),
        ("pass", "status 0"),
        ("raise SystemExit(3)", "status 3"),
        ('print(\'{"error": "too green"}\'); raise SystemExit(1)', "too green"),
    ],
)
def test_a_conversion_that_fails_says_why_or_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kids: Children, script: str, match: str
) -> None:
    plays(monkeypatch, tmp_path, "convert", script)
    with pytest.raises(ConversionError, match=match):
        kids.convert(tmp_path / "a.gguf", tmp_path / "out", no_progress)


def test_a_conversion_that_is_done_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kids: Children, steps: list[tuple[str, int, int]]
) -> None:
    plays(monkeypatch, tmp_path, "convert", 'print(\'{"step": "reading weights"}\'); print(\'{"done": "x"}\')')
    kids.convert(tmp_path / "a.gguf", tmp_path / "out", no_progress)
    assert steps == [("reading weights", 0, 0)]


def test_a_child_that_would_run_for_an_hour_ends_when_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = 'import time; print(\'{"step": "begun"}\', flush=True); time.sleep(3600)'
    plays(monkeypatch, tmp_path, "convert", script)
    begun, ended = threading.Event(), list[BaseException]()
    kids = Children(lambda *_: begun.set())

    def work() -> None:
        with pytest.raises(StoppedError) as caught:
            kids.convert(tmp_path / "a.gguf", tmp_path / "out", no_progress)
        ended.append(caught.value)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    kids.stop()
    thread.join(60)
    assert [str(error) for error in ended] == ["the coordinator was stopped before this was done"]


def test_after_stopping_nothing_is_begun(kids: Children) -> None:
    kids.stop()
    with pytest.raises(StoppedError):
        kids.fetch("owner/name", None)
