"""A model by its hub id, downloaded by the hub's own library from wherever HF_ENDPOINT points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from demo.local_pool import ROOT
from tests.fakes.fake_hub import fake_hub

REPO = "someone/tiny-llama"
LIMIT_S = 120.0


def add_model(endpoint: str, scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(scratch / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    argv = [sys.executable, "-m", "coordinator", "model", "add", *arguments, "--data-dir", str(scratch / "pool")]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=LIMIT_S, check=False)


def test_a_hub_id_is_fetched_from_the_endpoint_and_only_what_is_needed(tiny_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(tiny_folder, repository)
    (repository / "pytorch_model.bin").write_bytes(b"not wanted")
    with fake_hub(REPO, repository) as (endpoint, asked):
        ended = add_model(endpoint, tmp_path, REPO)
    assert ended.returncode == 0, ended.stderr
    assert f"{REPO}: 4 layers" in ended.stdout
    assert any(path.endswith("/model.safetensors") for path in asked)
    assert not any("pytorch_model.bin" in path for path in asked), "pickles are never fetched"


def test_a_repository_that_the_hub_does_not_have_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    with fake_hub(REPO, tiny_folder) as (endpoint, _):
        ended = add_model(endpoint, tmp_path, "someone/else")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "no such model" in ended.stderr
