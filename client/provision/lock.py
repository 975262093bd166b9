"""A lock file: exactly which packages, by hash, make a runtime, and how large it is. Pure.

It is a requirements file with hashes (pip's format), whose first lines are facts in comments:

    # build: linux-x86_64-cuda
    # python: >=3.11,<3.14
    # min-cuda: 13.0              the CUDA version that the driver must support, if any
    # index: https://...          an index beside the default one, if any
    # download-bytes: 2800000000
    # installed-bytes: 6100000000
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from client.provision.errors import ProvisionError

_FACT = re.compile(r"# ([a-z-]+): (.+)")
_NUMBERED = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Lock:
    """`identity` is the SHA-256 of the file: another lock is another runtime."""

    build: str
    python: str
    min_cuda: tuple[int, int] | None
    index: str
    download_bytes: int
    installed_bytes: int
    identity: str


def parse_lock(text: str) -> Lock:
    """Raises ProvisionError (bad_lock): the file came with the app, so the app is damaged."""
    facts = {match[1]: match[2] for line in text.splitlines() if (match := _FACT.fullmatch(line))}
    try:
        return Lock(
            build=facts["build"],
            python=facts["python"],
            min_cuda=_version(facts["min-cuda"]) if "min-cuda" in facts else None,
            index=facts.get("index", ""),
            download_bytes=int(facts["download-bytes"]),
            installed_bytes=int(facts["installed-bytes"]),
            identity=hashlib.sha256(text.encode()).hexdigest(),
        )
    except (KeyError, ValueError) as error:
        raise ProvisionError("bad_lock", f"The app's lock file is damaged ({error}); install the app again.") from None


def _version(text: str) -> tuple[int, int]:
    if not _NUMBERED.fullmatch(text):
        raise ValueError(f"{text!r} is not a version")
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
