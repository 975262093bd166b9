"""Start at login, for each platform: only what the volunteer ticked, removed when it is unticked, never put back.

The system's entry itself is the truth: no setting of ours says that there should be one."""

from __future__ import annotations

import importlib
import os
import plistlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

DESKTOP_FILE = "decentllm.desktop"
LABEL = "org.decentllm.app"
RUN_KEY = r"Software\Microsoft\Windows\CurrentVersion\Run"
RUN_NAME = "DecentLLM"
_OFF = re.compile(r"^\s*(Hidden\s*=\s*true|X-GNOME-Autostart-enabled\s*=\s*false)\s*$", re.MULTILINE | re.IGNORECASE)
"""How desktops switch an entry off without removing it."""


class AutostartError(Exception):
    """The entry cannot be written or removed; the sentence is for the volunteer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Starting at login could not be changed: {self.reason}."


class Autostart(Protocol):
    """Both changes raise AutostartError."""

    def is_on(self) -> bool: ...
    def turn_on(self, argv: Sequence[str]) -> None: ...
    def turn_off(self) -> None: ...


# ---------------------------------------------------------------- texts


def desktop_entry(argv: Sequence[str]) -> str:
    """For freedesktop sessions (Desktop Entry Specification 1.5, autostart specification 0.5)."""
    return (
        "[Desktop Entry]\n"
        "Type=Application\n"
        "Name=DecentLLM\n"
        "Comment=Contribute a GPU to a pool\n"
        f"Exec={' '.join(_quoted(word) for word in argv)}\n"
        "Icon=decentllm\n"
        "Terminal=false\n"
        "X-GNOME-Autostart-enabled=true\n"
    )


def _quoted(word: str) -> str:
    """A word of an Exec line: quoted, then escaped once more as every string of the file; `%` is a field code."""
    inner = re.sub(r'(["`$\\])', r"\\\1", word).replace("%", "%%")
    return f'"{inner}"'.replace("\\", "\\\\") if re.search(r"[^\w./:=@+-]", word) else word


def launch_agent(argv: Sequence[str]) -> bytes:
    """For macOS (launchd.plist(5)); not kept alive: quitting the app is quitting it."""
    return plistlib.dumps(
        {"Label": LABEL, "ProgramArguments": list(argv), "RunAtLoad": True, "LimitLoadToSessionType": "Aqua"}
    )


def run_value(argv: Sequence[str]) -> str:
    """For Windows' Run key: one string, quoted as CommandLineToArgvW takes it apart."""
    return subprocess.list2cmdline(argv)


# ---------------------------------------------------------------- places


class FileAutostart:
    """Linux and macOS: a file in a folder of the user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_on(self) -> bool:
        try:
            return not _OFF.search(self.path.read_text("utf-8", errors="replace"))
        except OSError:
            return False

    def turn_on(self, argv: Sequence[str]) -> None:
        content = launch_agent(argv) if self.path.suffix == ".plist" else desktop_entry(argv).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(content)
        except OSError as error:
            raise AutostartError(f"{self.path}: {error.strerror or error}") from None

    def turn_off(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise AutostartError(f"{self.path}: {error.strerror or error}") from None


class RegistryAutostart:
    """Windows: a value of the user's Run key. `winreg` is the module of that name."""

    def __init__(self, winreg: Any) -> None:
        self._winreg = winreg

    def is_on(self) -> bool:
        try:
            with self._key(self._winreg.KEY_READ) as key:
                self._winreg.QueryValueEx(key, RUN_NAME)
        except OSError:
            return False
        return True

    def turn_on(self, argv: Sequence[str]) -> None:
        try:
            with self._key(self._winreg.KEY_WRITE) as key:
                self._winreg.SetValueEx(key, RUN_NAME, 0, self._winreg.REG_SZ, run_value(argv))
        except OSError as error:
            raise AutostartError(f"the registry: {error.strerror or error}") from None

    def turn_off(self) -> None:
        try:
            with self._key(self._winreg.KEY_WRITE) as key:
                self._winreg.DeleteValue(key, RUN_NAME)
        except FileNotFoundError:
            return
        except OSError as error:
            raise AutostartError(f"the registry: {error.strerror or error}") from None

    def _key(self, access: int) -> Any:
        return self._winreg.CreateKeyEx(self._winreg.HKEY_CURRENT_USER, RUN_KEY, 0, access)


def autostart_of(platform: str, environ: Mapping[str, str], home: Path) -> Autostart:
    if platform == "win32":
        return RegistryAutostart(importlib.import_module("winreg"))
    if platform == "darwin":
        return FileAutostart(home / "Library/LaunchAgents" / f"{LABEL}.plist")
    config = environ.get("XDG_CONFIG_HOME", "")
    # A relative path in it must be ignored (XDG Base Directory Specification 0.8).
    folder = Path(config) if Path(config).is_absolute() else home / ".config"
    return FileAutostart(folder / "autostart" / DESKTOP_FILE)


def system_autostart() -> Autostart:
    return autostart_of(sys.platform, os.environ, Path.home())
