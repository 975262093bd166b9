"""Fetches and converts the two real models that the tests and benchmarks use. Does nothing when they are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coordinator.app import show_progress
from coordinator.models.errors import ModelError
from coordinator.models.sources import run_converter
from demo.fetch_model import MODELS, FetchError, fetch


def main() -> int:
    parser = argparse.ArgumentParser(description="Get the real models for the tests.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    folder = parser.parse_args().models
    try:
        for model in MODELS.values():
            prepare(folder, fetch(model, folder))
    except (FetchError, ModelError) as error:
        print(f"models for tests: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(folder: Path, gguf: Path) -> None:
    """Convert to `folder / name` unless that is there; the converter replaces it in one step when it is done."""
    target = folder / gguf.stem
    if not target.exists():
        print(f"Converting {gguf.name}.", flush=True)
        run_converter(gguf, target, show_progress)


if __name__ == "__main__":
    sys.exit(main())
