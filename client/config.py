"""The node's settings: read once at the edge, frozen, each default written here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from client.errors import JoinError

BYTE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
MAX_SIZE_BYTES = 2**53
"""What the wire takes (protocol.values.Bytes): 9 petabytes."""
_HOST = re.compile(r"[\w.:%-]+")
"""A name (in any script), an IPv4 or an IPv6 address."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the agent needs to know. `join_url` is the pool's address, such as http://127.0.0.1:8000."""

    join_url: str
    data_dir: Path
    name: str
    max_memory_bytes: int | None = None
    max_layers: int | None = None
    use_gpu: bool = True
    peer_host: str = "127.0.0.1"
    worker_python: str = ""
    attached: bool = False

    @property
    def node_socket_url(self) -> str:
        """Where the agent's websocket goes."""
        parts = urlsplit(self.join_url)
        scheme = {"http": "ws", "https": "wss"}[parts.scheme]
        return f"{scheme}://{parts.netloc}/node"


def parse_join_url(text: str) -> str:
    """The pool's base address from what a person pasted; raises JoinError with one sentence."""
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        has_port_in_range = parts.port is None or parts.port > 0
    except ValueError:
        raise JoinError("bad_address", "The pool's address is not a valid URL.") from None
    if parts.scheme not in ("http", "https") or not has_port_in_range or not _HOST.fullmatch(parts.hostname or ""):
        raise JoinError("bad_address", "The pool's address must look like http://host:port.")
    if "@" in parts.netloc:
        raise JoinError("bad_address", "The pool's address must not contain a user name or password.")
    return f"{parts.scheme}://{parts.netloc}"


def parse_size(text: str) -> int:
    """Bytes from "1500MB", "2GiB" or a plain number; raises ValueError with one sentence."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a size; write it like 6GB, 512MiB or 2000000000")
    size = float(match[1]) * BYTE_UNITS[(match[2] or "").upper()]
    if not 1 <= size <= MAX_SIZE_BYTES:
        raise ValueError(f"{text[:40]!r} is out of range: from 1 byte to {MAX_SIZE_BYTES:,} bytes")
    return int(size)
