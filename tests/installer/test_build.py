"""What can be looked at without building an installer; `make package` and `make package-test` do the rest."""

from __future__ import annotations

import configparser
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from demo.local_pool import ROOT
from installer import build
from protocol.join_link import SCHEME

PACKAGE = ROOT / "installer" / "linux" / "package"


def test_the_desktop_entry_opens_join_links_with_the_app() -> None:
    entry = configparser.ConfigParser(interpolation=None)
    entry.read(PACKAGE / "decentllm.desktop")
    assert entry["Desktop Entry"]["Exec"] == "decentllm %u"
    assert entry["Desktop Entry"]["MimeType"] == f"x-scheme-handler/{SCHEME};"


@pytest.mark.parametrize("script", sorted(PACKAGE.glob("*.sh")), ids=lambda path: path.name)
def test_the_package_s_scripts_are_plain_posix_shell(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0


def test_every_file_that_the_package_names_is_there_or_made_by_the_build() -> None:
    recipe = (ROOT / "installer" / "linux" / "nfpm.yaml").read_text()
    sources = re.findall(r"^\s+(?:- src|postinstall|preremove|postremove): (\S+)$", recipe, re.MULTILINE)
    made = ("dist/", "build/", "/usr/")
    assert len(sources) >= 8
    assert [name for name in sources if not name.startswith(made) and not (ROOT / name).exists()] == []


def test_the_windows_installer_registers_the_same_links_and_deletes_no_folder_of_the_user_s_choice() -> None:
    script = (ROOT / "installer" / "windows" / "decentllm.nsi").read_text()
    assert f"Software\\Classes\\{SCHEME}" in script
    assert "MUI_PAGE_DIRECTORY" not in script
    assert "InstallDir " not in script


@pytest.mark.skipif(shutil.which("makensis") is None, reason="NSIS is not installed")
def test_the_windows_installer_compiles(tmp_path: Path) -> None:
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "decentllm.exe").write_bytes(b"MZ")
    target = tmp_path / "decentllm-install.exe"
    subprocess.run(build.makensis_argv(tmp_path / "payload", target), check=True, stdout=subprocess.DEVNULL)
    assert target.read_bytes()[:2] == b"MZ"


def test_an_icon_file_holds_its_pictures_where_its_table_says() -> None:
    data = build.ico_of([(16, b"small"), (256, b"large picture")])
    reserved, kind, count = struct.unpack_from("<HHH", data)
    assert (reserved, kind, count) == (0, 1, 2)
    entries = [struct.unpack_from("<BBBBHHII", data, 6 + 16 * n) for n in range(count)]
    assert [entry[0] for entry in entries] == [16, 0], "256 is written as 0"
    assert [data[offset : offset + size] for *_, size, offset in entries] == [b"small", b"large picture"]
