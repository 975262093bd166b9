"""Where a model can come from: a folder, a GGUF file, or the model hub. Downloading and converting are done here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.models.build import Progress
from coordinator.models.errors import (
    ConversionError,
    DownloadError,
    ModelNotFoundError,
    UnsupportedModelError,
    shown,
)
from protocol.values import Quantisation

HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]
NOT_HUB_FILES = ["*/*", "consolidated*.safetensors"]
"""Sub-folders hold other formats; `consolidated` is the same weights once more (Mistral's repositories)."""

_HUB_ID = re.compile(r"\A([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@([A-Za-z0-9._/-]+))?\Z")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]

Fetch = Callable[[str, str | None], Path]
"""Downloads a hub model at a revision and returns its folder; raises DownloadError."""
Convert = Callable[[Path, Path, Progress], None]
"""Turns a GGUF file into a new folder; raises ConversionError."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    path: Path


@dataclass(frozen=True, slots=True)
class GgufSource:
    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    repo_id: str
    revision: str | None


def split_quantisation(spec: str) -> tuple[str, Quantisation | None]:
    """What `SPEC:int8` and `SPEC:int4` mean: the model that SPEC means, with its weights packed so by the nodes. A file
    or folder whose own name ends so is meant first."""
    source, _, word = spec.rpartition(":")
    if not source or word not in set(Quantisation) or _existing(spec) is not None:
        return spec, None
    return source, Quantisation(word)


def resolve(spec: str) -> FolderSource | GgufSource | HubSource:
    """What a person means by `spec`: a folder or .gguf file that is there, else `owner/name` or `owner/name@revision`.

    Raises UnsupportedModelError for another kind of file, ModelNotFoundError for anything else."""
    path = _existing(spec)
    if path is not None:
        return FolderSource(path) if path.is_dir() else GgufSource(_gguf(path))
    match = _HUB_ID.match(spec)
    if match is None or spec.endswith(".gguf"):
        raise ModelNotFoundError(spec, "there is no such folder or file, and it is not a hub id like owner/name")
    return HubSource(match[1], match[2])


def _existing(spec: str) -> Path | None:
    try:
        path = Path(spec).expanduser()
        return path.absolute() if spec and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, has a NUL, or is in an unknown user's home
        return None


def _gguf(path: Path) -> Path:
    if path.suffix.lower() == ".gguf":
        return path
    advice = "give the folder that it is in" if path.suffix == ".safetensors" else "give a folder or a .gguf file"
    raise UnsupportedModelError(path.name, f"a single {path.suffix or 'plain'} file is not a model; {advice}")


def fetch_snapshot(repo_id: str, revision: str | None) -> Path:
    """Download a model from the hub that huggingface_hub is set to (HF_ENDPOINT, HF_TOKEN), or find it in its cache.

    What is complete in the cache is not fetched again. Raises DownloadError."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
    except LocalEntryNotFoundError:
        reason = "the model hub cannot be reached; connect to it, or give a folder or .gguf file instead"
        raise DownloadError(repo_id, reason) from None
    except HfHubHTTPError as error:
        raise DownloadError(repo_id, _hub_refusal(error.response.status_code)) from None
    except (HFValidationError, httpx.HTTPError, OSError) as error:
        raise DownloadError(repo_id, shown(error)) from None
    return Path(folder)


def _hub_refusal(status: int) -> str:
    if status in (401, 403):
        return f"the hub refused access ({status}): accept the model's terms there and set HF_TOKEN"
    if status == 404:
        return "the hub has no such model or revision"
    return f"the hub answered with status {status}"


def run_converter(source: Path, target: Path, progress: Progress) -> None:
    """Convert a GGUF file in a process of its own (see convert.py); raises ConversionError."""
    command = [sys.executable, "-m", "coordinator.models.convert", str(source), str(target)]
    last: dict[str, str] = {}
    with subprocess.Popen(
        command, cwd=_PACKAGE_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            last = _read_line(line) or last
            if "step" in last:
                progress(last["step"], 0, 0)
    if child.returncode != 0 or "done" not in last:
        ended = f"the converter ended with status {child.returncode} (a negative one is often too little memory)"
        raise ConversionError(source.name, last.get("error", ended))


def _read_line(line: str) -> dict[str, str] | None:
    """A line of the converter; None for what a library printed in between."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
