"""Which build this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from protocol.version import app_version


def test_an_installed_build_has_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.version.version", lambda name: f"{name} 1.2.3")
    assert app_version() == "decentllm 1.2.3"


def test_a_build_that_was_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("protocol.version.version", missing)
    assert app_version() == "source"
