"""The command: whatever people do wrong is one sentence and status 2, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.__main__ import main

LIMIT_S = 120
COMMAND = [sys.executable, "-m", "coordinator"]
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DECENTLLM_COORDINATOR_DATA_DIR": str(data_dir), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )


def sentence_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error."""
    assert ended.returncode == 2, ended.stderr
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("decentllm-coordinator: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return line


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = sentence_of(run("serve", "--port", port, data_dir=tmp_path))
    assert f"port {port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--host must be a loopback address"),
        (["--name", "<b>"], "--name"),
        (["--port", "0", "--model", "/nowhere/model"], "/nowhere/model"),
        (["--port", "0", "--model", "."], "cannot be served"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in sentence_of(run("serve", *arguments, data_dir=tmp_path))


def test_a_broken_model_file_is_one_sentence(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF nonsense")
    ended = run("model", "add", str(model), data_dir=tmp_path / "data")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("decentllm-coordinator: model.gguf could not be converted")
    assert "Traceback" not in ended.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr("coordinator.models.catalog.Catalog.add", full)
    assert main(["model", "add", "owner/name", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"decentllm-coordinator: No space left on device: {tmp_path}\n"


@pytest.mark.parametrize("port", ["abc", "-1", "65536", "8000.5", ""])
def test_a_port_that_is_no_number_is_refused(
    tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", f"--port={port}"])
    assert caught.value.code == 2
    assert "is not a port number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["model", "add", "--help"]])
def test_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "usage: decentllm-coordinator" in capsys.readouterr().out


def test_an_empty_catalog_says_how_to_fill_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "list", "--data-dir", str(tmp_path)]) == 0
    assert "model add" in capsys.readouterr().out
    assert main(["model", "remove", "nothing", "--data-dir", str(tmp_path)]) == 0


def test_a_pool_without_a_model_starts_and_says_how_to_add_one(tmp_path: Path) -> None:
    environment = os.environ | {"DECENTLLM_COORDINATOR_DATA_DIR": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(4)]
        finally:
            child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=LIMIT_S)
    assert "no model yet" in lines[0]
    assert lines[1].startswith("Chat page: http://127.0.0.1:")
    assert "decentllm node run --join" in lines[3]
    assert "Traceback" not in errors
    assert child.returncode in (0, 130)
