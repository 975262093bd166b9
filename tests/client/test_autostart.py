"""Start at login: the texts for each system, and that only the volunteer decides."""

from __future__ import annotations

import plistlib
import sys
from pathlib import Path

import pytest

from client.autostart import (
    AutostartError,
    FileAutostart,
    RegistryAutostart,
    autostart_of,
    desktop_entry,
    launch_agent,
    run_value,
)

ARGV = ["/opt/decentllm/decentllm", "--hidden"]


def exec_line(argv: list[str]) -> str:
    return next(line for line in desktop_entry(argv).splitlines() if line.startswith("Exec="))


def test_the_desktop_entry_starts_the_app_hidden() -> None:
    text = desktop_entry(ARGV)
    assert text.startswith("[Desktop Entry]\nType=Application\nName=DecentLLM\n")
    assert exec_line(ARGV) == "Exec=/opt/decentllm/decentllm --hidden"


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/with blank/x", '"/with blank/x"'),
        ("100%", '"100%%"'),
        ('say "hi"', r'"say \\"hi\\""'),
        ("$HOME", r'"\\$HOME"'),
        ("back\\slash", r'"back\\\\slash"'),
        ("a;rm -rf `x`", r'"a;rm -rf \\`x\\`"'),
    ],
)
def test_words_are_quoted_as_the_specification_says(word: str, written: str) -> None:
    assert exec_line(["app", word]) == f"Exec=app {written}"


def test_the_launch_agent_is_a_property_list_that_does_not_keep_alive() -> None:
    found = plistlib.loads(launch_agent(ARGV))
    assert found["ProgramArguments"] == ARGV
    assert found["RunAtLoad"] is True
    assert "KeepAlive" not in found


def test_the_run_value_is_quoted() -> None:
    assert run_value([r"C:\Program Files\D\d.exe", "--hidden"]) == r'"C:\Program Files\D\d.exe" --hidden'


@pytest.mark.parametrize(
    ("platform", "environ", "path"),
    [
        ("linux", {}, ".config/autostart/decentllm.desktop"),
        ("linux", {"XDG_CONFIG_HOME": "relative"}, ".config/autostart/decentllm.desktop"),
        ("darwin", {}, "Library/LaunchAgents/org.decentllm.app.plist"),
    ],
)
def test_each_system_has_its_place(tmp_path: Path, platform: str, environ: dict[str, str], path: str) -> None:
    found = autostart_of(platform, environ, tmp_path)
    assert isinstance(found, FileAutostart)
    assert found.path == tmp_path / path


def test_an_own_configuration_folder_counts(tmp_path: Path) -> None:
    found = autostart_of("linux", {"XDG_CONFIG_HOME": str(tmp_path / "c")}, tmp_path)
    assert isinstance(found, FileAutostart)
    assert found.path == tmp_path / "c/autostart/decentllm.desktop"


@pytest.mark.parametrize("name", ["decentllm.desktop", "org.decentllm.app.plist"])
def test_it_is_written_when_wished_and_removed_when_not(tmp_path: Path, name: str) -> None:
    autostart = FileAutostart(tmp_path / "made" / name)
    assert not autostart.is_on()
    autostart.turn_off()
    autostart.turn_on(ARGV)
    assert autostart.is_on()
    assert b"/opt/decentllm/decentllm" in autostart.path.read_bytes()
    autostart.turn_off()
    assert not autostart.path.exists()


@pytest.mark.parametrize("line", ["Hidden=true", "X-GNOME-Autostart-enabled=false"])
def test_an_entry_that_the_desktop_switched_off_is_off(tmp_path: Path, line: str) -> None:
    autostart = FileAutostart(tmp_path / "decentllm.desktop")
    autostart.path.write_text(f"[Desktop Entry]\nExec=decentllm\n{line}\n")
    assert not autostart.is_on()


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    autostart = FileAutostart(tmp_path / "file" / "decentllm.desktop")
    with pytest.raises(AutostartError, match="Starting at login could not be changed"):
        autostart.turn_on(ARGV)


class FakeWinreg:
    """The part of winreg that is used, over a dict."""

    KEY_READ, KEY_WRITE, REG_SZ, HKEY_CURRENT_USER = 1, 2, 1, "HKCU"

    def __init__(self, refuses: bool = False) -> None:
        self.values: dict[str, str] = {}
        self.refuses = refuses

    def CreateKeyEx(self, root: str, path: str, _reserved: int, _access: int) -> FakeWinreg:  # noqa: N802
        assert (root, path) == ("HKCU", r"Software\Microsoft\Windows\CurrentVersion\Run")
        if self.refuses:
            raise PermissionError(13, "Access is denied")
        return self

    def __enter__(self) -> FakeWinreg:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def QueryValueEx(self, _key: object, name: str) -> str:  # noqa: N802
        if name not in self.values:
            raise FileNotFoundError(2, "no such value")
        return self.values[name]

    def SetValueEx(self, _key: object, name: str, _reserved: int, _kind: int, value: str) -> None:  # noqa: N802
        self.values[name] = value

    def DeleteValue(self, _key: object, name: str) -> None:  # noqa: N802
        if name not in self.values:
            raise FileNotFoundError(2, "no such value")
        del self.values[name]


def test_windows_has_a_value_in_the_users_run_key() -> None:
    winreg = FakeWinreg()
    autostart = RegistryAutostart(winreg)
    autostart.turn_off()
    assert not autostart.is_on()
    autostart.turn_on(ARGV)
    assert winreg.values == {"DecentLLM": "/opt/decentllm/decentllm --hidden"}
    assert autostart.is_on()
    autostart.turn_off()
    assert winreg.values == {}


def test_a_registry_that_refuses_is_reported() -> None:
    autostart = RegistryAutostart(FakeWinreg(refuses=True))
    assert not autostart.is_on()
    for change in (lambda: autostart.turn_on(ARGV), autostart.turn_off):
        with pytest.raises(AutostartError, match="the registry: Access is denied"):
            change()


def test_windows_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "winreg", FakeWinreg())  # type: ignore[arg-type]
    assert isinstance(autostart_of("win32", {}, tmp_path), RegistryAutostart)
