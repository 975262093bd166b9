from __future__ import annotations

import json

import pytest

from client.runtime import self_test


def test_a_runtime_that_works_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test.main(["--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == "CPU"
    assert said["torch"]


def test_a_device_that_is_not_there_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test.main(["--device", "cuda:0"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
