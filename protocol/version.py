"""Which build this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def app_version() -> str:
    """This build's version; "source" when it runs without having been installed."""
    try:
        return version("decentllm")
    except PackageNotFoundError:
        return "source"
