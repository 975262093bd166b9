"""The download's own process: what it says and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.models import fetch
from coordinator.models.errors import DownloadError


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_download_says_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetched(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return Path("/cache/model")

    monkeypatch.setattr(fetch, "fetch_snapshot", fetched)
    assert fetch.main(["owner/name", "--revision", "v1"]) == 0
    assert asked == [("owner/name", "v1")]
    assert said(capsys) == [{"step": "downloading"}, {"done": "/cache/model"}]


def test_a_refusal_is_its_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(repo_id: str, revision: str | None) -> Path:
        raise DownloadError(repo_id, "the hub has no such model or revision")

    monkeypatch.setattr(fetch, "fetch_snapshot", refused)
    assert fetch.main(["owner/name"]) == 1
    assert said(capsys)[-1] == {"error": "the hub has no such model or revision"}


def test_without_a_model_it_is_a_mistake_of_the_callers() -> None:
    with pytest.raises(SystemExit) as caught:
        fetch.main([])
    assert caught.value.code == 2
