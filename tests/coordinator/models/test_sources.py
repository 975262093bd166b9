from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.models import sources
from coordinator.models.errors import ConversionError, DownloadError, ModelNotFoundError, UnsupportedModelError
from coordinator.models.sources import FolderSource, GgufSource, HubSource, resolve, run_converter


def test_a_folder_that_is_there_is_a_folder_even_if_it_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == FolderSource(tmp_path / "owner" / "name")


def test_a_gguf_file_is_one_whatever_the_case_of_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a.GGUF").touch()
    assert resolve(str(tmp_path / "a.GGUF")) == GgufSource(tmp_path / "a.GGUF")


def test_owner_and_name_are_a_hub_id_with_an_optional_revision() -> None:
    assert resolve("Qwen/Qwen3-0.6B") == HubSource("Qwen/Qwen3-0.6B", None)
    assert resolve("Qwen/Qwen3-0.6B@v1.0") == HubSource("Qwen/Qwen3-0.6B", "v1.0")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "nothing",
        "../../etc/nothing",
        "/nothing",
        "a/b/c",
        "a/b.gguf",
        "a\0b",
        "a" * 300 + "/b",
        "a/b\n",
        "~nobody-here/a",
    ],
)
def test_anything_else_is_not_found(spec: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(spec)


@pytest.mark.parametrize(
    ("name", "advice"), [("a.safetensors", "give the folder"), ("a.bin", r"a \.gguf file"), ("a", "plain")]
)
def test_another_kind_of_file_is_refused_with_advice(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UnsupportedModelError, match=advice):
        resolve(str(tmp_path / name))


def test_without_a_network_the_hub_is_said_to_be_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DownloadError, match="the model hub cannot be reached"):
        sources.fetch_snapshot("owner/name", None)


@pytest.mark.parametrize(("status", "match"), [(401, "accept the model's terms"), (404, "no such model"), (500, "500")])
def test_each_refusal_of_the_hub_has_its_sentence(status: int, match: str) -> None:
    assert match in sources._hub_refusal(status)


def _converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let run_converter start this script as its module."""
    package = tmp_path / "coordinator" / "models"
    package.mkdir(parents=True)
    (package / "convert.py").write_text(script)
    monkeypatch.setattr(sources, "_PACKAGE_ROOT", tmp_path)


def test_the_converters_steps_are_shown_as_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = 'print("noise"); print(\'{"step": "reading weights"}\'); print(\'{"done": "x"}\')'
    _converter(monkeypatch, tmp_path, script)
    steps: list[str] = []
    run_converter(tmp_path / "a.gguf", tmp_path / "out", lambda step, done, total: steps.append(step))
    assert steps == ["reading weights"]


def test_the_converters_own_sentence_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _converter(monkeypatch, tmp_path, 'print(\'{"error": "too green"}\'); raise SystemExit(1)')
    with pytest.raises(ConversionError, match=r"a\.gguf could not be converted: too green"):
        run_converter(tmp_path / "a.gguf", tmp_path / "out", lambda *_: None)


def test_a_converter_that_is_killed_is_reported_with_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _converter(monkeypatch, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ConversionError, match=r"status -9 .*too little memory"):
        run_converter(tmp_path / "a.gguf", tmp_path / "out", lambda *_: None)
