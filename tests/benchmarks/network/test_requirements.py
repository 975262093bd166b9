"""What is said where no network can be emulated; runs everywhere."""

from __future__ import annotations

import os

import pytest

from benchmarks.network import Network, NetworkError, Topology, why_not


def test_without_root_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    reason = why_not()
    assert "root" in reason or "Linux" in reason
    assert reason.count(".") == 1
    with pytest.raises(NetworkError, match="needs"), Network(Topology(("one",))):
        pass
