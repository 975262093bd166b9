"""Long work for the catalog in processes of its own, which can be ended at once: downloads and conversions.

A thread that waits for a network cannot be ended, and a coordinator that waits for it would not stop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from coordinator.models.build import Progress
from coordinator.models.errors import ConversionError, DownloadError, ModelError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class StoppedError(ModelError):
    """The coordinator is being stopped."""

    def __str__(self) -> str:
        return "the coordinator was stopped before this was done"


class Children:
    """At most one child at a time. `stop` may be called from another thread, and ends whatever runs or is begun."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def fetch(self, repo_id: str, revision: str | None) -> Path:
        """Download a model from the hub and return its folder (`sources.Fetch`). Raises DownloadError."""
        last, status = self._run("fetch", repo_id, *(["--revision", revision] if revision else []))
        if status != 0 or "done" not in last:
            raise DownloadError(repo_id, last.get("error", f"the download's process ended with status {status}"))
        return Path(last["done"])

    def convert(self, source: Path, target: Path, progress: Progress) -> None:
        """Turn a GGUF file into a new folder (`sources.Convert`). Raises ConversionError."""
        last, status = self._run("convert", str(source), str(target))
        if status != 0 or "done" not in last:
            ended = f"the converter ended with status {status} (a negative one is often too little memory)"
            raise ConversionError(source.name, last.get("error", ended))

    def stop(self) -> None:
        """Kill the child that runs; none is started any more."""
        with self._lock:
            self._is_stopped = True
            if self._child is not None:
                self._child.kill()

    def _run(self, module: str, *arguments: str) -> tuple[dict[str, str], int]:
        """The last thing that `python -m coordinator.models.<module>` said, and its status. Raises StoppedError."""
        command = [sys.executable, "-m", f"coordinator.models.{module}", *arguments]
        with self._started(command) as child:
            last = self._listen(child)
        with self._lock:
            self._child = None
            if self._is_stopped:
                raise StoppedError
        return last, child.returncode

    def _started(self, command: list[str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._is_stopped:
                raise StoppedError
            self._child = subprocess.Popen(
                command,
                cwd=PACKAGE_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            return self._child

    def _listen(self, child: subprocess.Popen[str]) -> dict[str, str]:
        """What it says as it goes becomes progress; what a library prints in between is left out."""
        last: dict[str, str] = {}
        assert child.stdout is not None
        for line in child.stdout:
            said = _object_of(line)
            if isinstance(step := said.get("step"), str):
                self._progress(step, _bytes_of(said, "done_bytes"), _bytes_of(said, "total_bytes"))
            last = {name: value for name, value in said.items() if isinstance(value, str)} or last
        return last


def _object_of(line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _bytes_of(said: dict[str, object], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) else 0
