"""Make the lock files of the runtime: `python installer/make_locks.py`, then look at the difference and commit it.

Versions come from constraints.txt; hashes from the package index (uv); sizes from the index and from the wheels'
own tables of contents, of which only the last bytes are fetched. The CPU build of torch is not on the default index:
`--find-links FOLDER` names a folder with its wheel when PyTorch's own index cannot be reached.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from packaging.requirements import Requirement
from packaging.tags import Tag, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "client" / "provision" / "locks"
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "msgspec")
"""What client/runtime imports."""
INDEX = "https://pypi.org/simple"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
JSON = "application/vnd.pypi.simple.v1+json"
"""PEP 691."""
TAIL_BYTES = 2**18


@dataclass(frozen=True)
class Build:
    name: str
    uv_platform: str
    tags: tuple[str, ...]
    python: str
    facts: tuple[str, ...] = ()
    torch_suffix: str = ""


BUILDS = (
    Build(
        "linux-x86_64-cuda",
        "x86_64-manylinux_2_28",
        ("manylinux_2_28_x86_64",),
        ">=3.11,<3.14",
        ("# min-cuda: 13.0",),
    ),
    Build(
        "linux-x86_64-cpu",
        "x86_64-manylinux_2_28",
        ("manylinux_2_28_x86_64",),
        "==3.11.*",
        (f"# index: {TORCH_CPU_INDEX}",),
        "+cpu",
    ),
    Build("windows-x86_64-cpu", "x86_64-pc-windows-msvc", ("win_amd64",), ">=3.11,<3.14"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--find-links", default="", help="a folder with the CPU build of torch")
    parser.add_argument("--uv", default=str(Path(sys.executable).with_name("uv")))
    parser.add_argument("builds", nargs="*", help="names of builds (default: all)")
    arguments = parser.parse_args()
    for build in BUILDS:
        if not arguments.builds or build.name in arguments.builds:
            write(build, arguments.uv, arguments.find_links)


def write(build: Build, uv: str, find_links: str) -> None:
    """One lock file."""
    body = compiled(build, uv, find_links)
    sizes = [size_of(line, build, find_links) for line in pinned(body)]
    download, installed = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    facts = [f"# build: {build.name}", f"# python: {build.python}", *build.facts]
    facts += [f"# download-bytes: {download}", f"# installed-bytes: {installed}"]
    (LOCKS / f"{build.name}.txt").write_text("\n".join([*facts, "", body]), "utf-8")
    print(f"{build.name}: {len(sizes)} packages, {download / 1e9:.2f} GB to download, {installed / 1e9:.2f} GB on disk")


def compiled(build: Build, uv: str, find_links: str) -> str:
    """Requirements with hashes, for this platform."""
    argv = [uv, "pip", "compile", "-", "--generate-hashes", "--no-annotate", "--no-header", "--no-config", "--no-build"]
    argv += ["--python-platform", build.uv_platform, "--python-version", "3.11", "--quiet"]
    if build.torch_suffix:
        argv += ["--find-links", find_links] if find_links else ["--index", TORCH_CPU_INDEX]
        argv += ["--index-strategy", "unsafe-best-match"]
    text = "\n".join(wanted(build))
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout


def wanted(build: Build) -> Iterator[str]:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name = line.partition("==")[0]
        if name in PACKAGES:
            yield line + (build.torch_suffix if name == "torch" else "")


def pinned(body: str) -> Iterator[tuple[str, str, set[str]]]:
    """Name, version and hashes of each package."""
    for block in body.replace("\\\n", " ").splitlines():
        if block and not block.startswith(("#", "--")):
            words = block.split()
            requirement = Requirement(block.partition("--hash")[0])
            version = next(iter(requirement.specifier)).version
            yield requirement.name, version, {w.removeprefix("--hash=sha256:") for w in words if w.startswith("--hash")}


def size_of(package: tuple[str, str, set[str]], build: Build, find_links: str) -> tuple[int, int]:
    """Bytes to download, and on disk, of the wheel that this platform takes."""
    name, version, hashes = package
    if version.endswith(build.torch_suffix or "\0") and find_links:
        wheel = next(Path(find_links).glob(f"{name}-{version}-*.whl"))
        with zipfile.ZipFile(wheel) as content:
            return wheel.stat().st_size, sum(entry.file_size for entry in content.infolist())
    file = _best(httpx.get(f"{INDEX}/{name}/", headers={"Accept": JSON}, timeout=60).json()["files"], hashes, build)
    return int(file["size"]), _installed_bytes(str(file["url"]), int(file["size"]))


def _best(files: list[dict[str, object]], hashes: set[str], build: Build) -> dict[str, object]:
    order = {tag: rank for rank, tag in enumerate(_tags(build))}
    ranked = []
    for file in files:
        digest = file["hashes"]
        assert isinstance(digest, dict)
        if digest.get("sha256") in hashes and str(file["filename"]).endswith(".whl"):
            tags = parse_wheel_filename(str(file["filename"]))[3]
            ranked += [(order[tag], file) for tag in tags if tag in order]
    return min(ranked, key=lambda pair: pair[0])[1]


def _tags(build: Build) -> list[Tag]:
    """What Python 3.11 takes there, best first."""
    older = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
    named = ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platforms = [*older, *named] if "linux" in build.name else list(build.tags)
    return [
        *cpython_tags((3, 11), platforms=platforms),
        *(Tag(f"py{v}", "none", p) for v in (311, 3, 2) for p in (*platforms, "any")),
        Tag("py2.py3", "none", "any"),
    ]


def _installed_bytes(url: str, size: int) -> int:
    """From the wheel's table of contents at its end: a whole file is never fetched for it."""
    assert urlsplit(url).scheme == "https"
    tail = min(size, TAIL_BYTES)
    while True:
        answer = httpx.get(url, headers={"Range": f"bytes={size - tail}-{size - 1}"}, timeout=120)
        answer.raise_for_status()
        try:
            with zipfile.ZipFile(_Tail(answer.content, size)) as content:
                return sum(entry.file_size for entry in content.infolist())
        except ValueError:
            tail = min(size, 4 * tail)


class _Tail(io.RawIOBase):
    """A file of which only the end is known; reading before it raises ValueError."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data[-size:]
        self._start = size - len(self._data)
        self._size = size
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        if self._position < self._start:
            raise ValueError("before the known part")
        begin = self._position - self._start
        piece = self._data[begin : None if count < 0 else begin + count]
        self._position += len(piece)
        return piece


if __name__ == "__main__":
    main()
