"""The runtime, prepared by the real uv from a folder of wheels: what plays torch there is a few lines long."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from demo.local_pool import ROOT

LIMIT_S = 120.0
WHEEL = "tiny_torch-1.0-py3-none-any.whl"
TORCH = """
__version__ = "1.0"
class Generator:
    def manual_seed(self, seed): return self
class rand:
    def __init__(self, *shape, generator): pass
    def to(self, device): return self
    cpu = lambda self: self
    __matmul__ = lambda self, other: self
def allclose(left, right, atol): return True
"""
METADATA = "Metadata-Version: 2.1\nName: tiny-torch\nVersion: 1.0\n"
WHEEL_FACTS = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder with the only package that the lock names."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    files = {
        "torch.py": TORCH,
        "transformers.py": "__version__ = '1.0'\n",
        "tiny_torch-1.0.dist-info/METADATA": METADATA,
        "tiny_torch-1.0.dist-info/WHEEL": WHEEL_FACTS,
    }
    record = "".join(f"{name},,\n" for name in (*files, "tiny_torch-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in {**files, "tiny_torch-1.0.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return folder


@pytest.fixture
def lock(mirror: Path, tmp_path: Path) -> Path:
    digest = hashlib.sha256((mirror / WHEEL).read_bytes()).hexdigest()
    facts = f"# build: tiny\n# python: {sys.executable}\n# download-bytes: 1000\n# installed-bytes: 2000\n"
    path = tmp_path / "lock.txt"
    path.write_text(f"{facts}\ntiny-torch==1.0 \\\n    --hash=sha256:{digest}\n")
    return path


def decentllm(lock: Path, mirror: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """On a machine without internet, whose environment says where the folder is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment |= {"DECENTLLM_FIND_LINKS": str(mirror), "UV_OFFLINE": "1"}
    argv = [sys.executable, "-m", "tests.integration.without_torch", str(lock), "node", *words]
    argv += ["--cpu", "--data-dir", str(lock.parent / "data")]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=LIMIT_S, check=False)


def test_the_runtime_is_prepared_once_and_then_ready(lock: Path, mirror: Path) -> None:
    assert facts(lock, mirror) == (False, 1000)
    ended = decentllm(lock, mirror, "prepare")
    assert ended.returncode == 0, ended.stderr
    python = ended.stdout.strip().removeprefix("The runtime is ready: ")
    said = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "1.0\n"
    assert facts(lock, mirror) == (True, 0)
    (mirror / WHEEL).unlink()
    assert decentllm(lock, mirror, "prepare").stdout == ended.stdout, "nothing is fetched again"


def facts(lock: Path, mirror: Path) -> tuple[bool, int]:
    """What the window says before the first click."""
    said = json.loads(decentllm(lock, mirror, "facts").stdout)
    return said["runtime_ready"], said["runtime_bytes"]


def test_a_package_that_is_not_the_locked_one_is_refused(lock: Path, mirror: Path) -> None:
    with zipfile.ZipFile(mirror / WHEEL, "a") as wheel:
        wheel.writestr("torch_extra.py", "")
    assert_one_sentence(decentllm(lock, mirror, "prepare"), "is not the expected one, and was not used")
    assert facts(lock, mirror) == (False, 1000)


def test_a_mirror_that_lacks_the_package_is_said_and_a_second_try_goes_on(lock: Path, mirror: Path) -> None:
    wheel = mirror / WHEEL
    wheel.rename(mirror / "elsewhere")
    assert_one_sentence(decentllm(lock, mirror, "prepare"), "not to be had")
    (mirror / "elsewhere").rename(wheel)
    assert decentllm(lock, mirror, "prepare").returncode == 0


def assert_one_sentence(ended: subprocess.CompletedProcess[str], words: str) -> None:
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("decentllm: ")
    assert words in last
