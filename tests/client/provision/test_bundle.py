from __future__ import annotations

import sys
from pathlib import Path

import pytest

from client.provision import bundle
from client.provision.errors import ProvisionError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in an installed app."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    (tmp_path / "bundle").mkdir()
    return tmp_path / "bundle"


def test_from_source_this_interpreter_and_these_sources_do() -> None:
    assert bundle.has_torch_here()
    assert (bundle.find_code() / "client" / "provision" / "bundle.py").exists()


def test_an_installed_app_uses_what_came_with_it(installed: Path) -> None:
    for name in ("uv", "uv.exe", "decentllm-0.1.0-py3-none-any.whl"):
        (installed / name).touch()
    assert bundle.find_uv().parent == installed
    assert bundle.find_code() == installed / "decentllm-0.1.0-py3-none-any.whl"
    assert not bundle.has_torch_here(), "the app's own interpreter is not the worker's"


def test_an_incomplete_app_is_named(installed: Path) -> None:
    with pytest.raises(ProvisionError, match="install it again"):
        bundle.find_code()


def test_without_any_uv_there_is_advice(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(installed))
    monkeypatch.setattr(sys, "executable", str(installed / "python"))
    with pytest.raises(ProvisionError, match="install uv") as caught:
        bundle.find_uv()
    assert caught.value.code == "no_tool"
