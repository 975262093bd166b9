"""The node's settings: read once at the edge, frozen, each default written here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from client.errors import JoinError
from protocol.join_link import JoinLink, JoinLinkError, parse_join_link
from protocol.pause import PauseRules

BYTE_UNITS = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip
MAX_SIZE_BYTES = 2**53
"""What the wire takes (protocol.values.Bytes): 9 petabytes."""
MAX_DISK_BYTES = 50 * 10**9
"""Weights of any one machine's share of a model fit; a volunteer's disk is not filled unasked."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*\Z", re.IGNORECASE)
NVML_MODULE = "pynvml"
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Direct(StrEnum):
    """Whether neighbours in a chain may connect to this node, and it to them. They see each other's addresses then."""

    AUTO = "auto"
    """With a pool on this machine or on the local network."""
    ON = "on"
    """With any pool."""
    OFF = "off"
    """Never: all rows go through the coordinator."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the agent needs to know. `max_disk_bytes` None: MAX_DISK_BYTES, or less if the pool says so.

    `index_url` and `find_links` say where the runtime's packages come from, if not from the public index. `pace`
    (client/pace.py) plays slower hardware, for benchmarks."""

    join: JoinLink
    data_dir: Path
    name: str
    max_memory_bytes: int | None = None
    max_layers: int | None = None
    max_disk_bytes: int | None = None
    use_gpu: bool = True
    direct: Direct = Direct.AUTO
    rules: PauseRules = PauseRules()
    worker_python: str = ""
    index_url: str = ""
    find_links: str = ""
    nvml_module: str = NVML_MODULE
    pace: str = ""
    attached: bool = False

    @property
    def join_url(self) -> str:
        """The pool's base address, such as http://127.0.0.1:8000."""
        return self.join.url

    @property
    def node_socket_url(self) -> str:
        """Where the agent's websocket goes."""
        parts = urlsplit(self.join.url)
        scheme = {"http": "ws", "https": "wss"}[parts.scheme]
        return f"{scheme}://{parts.netloc}/node"

    @property
    def audience(self) -> str:
        """The pool's host and port as in the Host header (RFC 9110, section 7.2), in lower case: without the scheme's
        own port, and in ASCII. A hello is signed for it (protocol.identity)."""
        parts = urlsplit(self.join.url)
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
        is_usual = parts.port in (None, _DEFAULT_PORTS[parts.scheme])
        return host if is_usual else f"{host}:{parts.port}"


def join_link(text: str) -> JoinLink:
    """A link or an address from what a person pasted; raises JoinError with one sentence."""
    try:
        return parse_join_link(text)
    except JoinLinkError as error:
        raise JoinError("bad_link", error.sentence) from None


def parse_size(text: str) -> int:
    """Bytes from "1500MB", "2GiB" or a plain number; raises ValueError with one sentence."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a size; write it like 6GB, 512MiB or 2000000000")
    size = float(match[1]) * BYTE_UNITS[(match[2] or "").upper()]
    if not 1 <= size <= MAX_SIZE_BYTES:
        raise ValueError(f"{text[:40]!r} is out of range: from 1 byte to {MAX_SIZE_BYTES:,} bytes")
    return int(size)
