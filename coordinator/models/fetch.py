"""`python -m coordinator.models.fetch OWNER/NAME [--revision REVISION]`: a model from the hub, in a process of its own.

Standard output is one JSON object per line: `{"step": "downloading"}` at the beginning, and at the end
`{"done": folder}` or `{"error": sentence}`. Exit status 0, 1 (refused or failed), 2 (usage)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from coordinator.models.errors import DownloadError
from coordinator.models.sources import fetch_snapshot


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m coordinator.models.fetch")
    parser.add_argument("repo_id", metavar="OWNER/NAME")
    parser.add_argument("--revision", default=None)
    arguments = parser.parse_args(argv)
    _say({"step": "downloading"})
    try:
        folder = fetch_snapshot(arguments.repo_id, arguments.revision)
    except DownloadError as error:
        _say({"error": error.reason})
        return 1
    _say({"done": str(folder)})
    return 0


def _say(line: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
