"""What comes with the app: uv, and our own code for the worker's interpreter."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from client.provision.errors import ProvisionError

_UV = "uv.exe" if sys.platform == "win32" else "uv"


def bundle_folder() -> Path:
    """In an installed app the folder `bundle` of its own files (PyInstaller: sys._MEIPASS)."""
    return Path(getattr(sys, "_MEIPASS", sys.prefix)) / "bundle"


def is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def has_torch_here() -> bool:
    """Whether this interpreter can be the worker's: an installation by pip."""
    return not is_frozen() and importlib.util.find_spec("torch") is not None


def find_uv() -> Path:
    """The app's own uv, else the one on the path. Raises ProvisionError (no_tool)."""
    for own in (bundle_folder() / _UV, Path(sys.executable).with_name(_UV)):
        if own.is_file():
            return own
    if (found := shutil.which("uv")) is None:
        raise ProvisionError(
            "no_tool", "The runtime is missing: install it with pip (torch and transformers), or install uv."
        )
    return Path(found)


def find_code() -> Path:
    """Our wheel in an installed app; from source, the folder that has our packages. Raises ProvisionError."""
    if not is_frozen():
        return Path(__file__).resolve().parents[2]
    wheels = sorted(bundle_folder().glob("decentllm-*.whl"))
    if not wheels:
        raise ProvisionError("no_tool", "The app's own files are incomplete; install it again.")
    return wheels[-1]
