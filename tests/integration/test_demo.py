"""`make demo` as a newcomer runs it, from the point where everything is installed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.local_pool import ROOT, ChildProgram, is_running
from tests.integration.conftest import QWEN

LIMIT_S = 300.0
QUESTION = "Write a Python function that reverses a string."


def test_one_question_through_two_nodes_prints_a_sensible_answer(models_folder: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "demo.run", "--model", str(models_folder / QWEN), "--folder", str(tmp_path)]
    ended = subprocess.run(
        [*argv, "--ask", QUESTION], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "def reverse_string(" in ended.stdout
    last = ended.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(r"Answered by (alice|bob) \(layers 0-\d+\) -> (alice|bob) \(layers \d+-23\)\.", last), last
    assert last.count("alice") == last.count("bob") == 1
    assert "Traceback" not in ended.stderr


def test_ctrl_c_stops_everything_it_started(tiny_folder: Path, tmp_path: Path) -> None:
    argv = ["-m", "demo.run", "--model", str(tiny_folder), "--folder", str(tmp_path)]
    demo = ChildProgram.start("demo", argv, tmp_path / "demo.log")
    try:
        demo.wait_for_line("Chat page: ", LIMIT_S)
        children = [child.pid for child in psutil.Process(demo.process.pid).children(recursive=True)]
        assert len(children) >= 5, "a coordinator, two agents and two workers"
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(LIMIT_S) == 0
        assert [pid for pid in children if is_running(pid)] == []
    finally:
        demo.stop()


@pytest.mark.parametrize("model", ["no/such/folder-here", "/nowhere/model.gguf"])
def test_a_model_that_is_not_there_is_one_sentence(model: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "demo.run", "--model", model, "--folder", str(tmp_path)]
    ended = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("demo: ")
