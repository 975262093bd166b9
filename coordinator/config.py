"""The coordinator's settings: read once at the edge, frozen, each default written here and nowhere else."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import appdirs

from coordinator.errors import PoolError


@dataclass(frozen=True, slots=True)
class PoolConfig:
    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    pool_name: str = "DecentLLM pool"
    models: tuple[str, ...] = ()
    """Folders, .gguf files or hub ids; empty: every model of the catalog."""


class ConfigError(PoolError):
    """A setting that cannot be used; the sentence names it."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_setting", message)


def default_data_dir() -> Path:
    return Path(appdirs.user_data_dir("decentllm-coordinator", appauthor=False))


def check_host(host: str) -> None:
    """Loopback only: until there are TLS and keys, nobody else may reach the pool. Raises ConfigError."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError("--host must be a loopback address (127.0.0.1): this version has no encryption yet.")


def check_pool_name(name: str) -> None:
    """What the wire accepts as a name (protocol.values.Name). Raises ConfigError."""
    if not 1 <= len(name) <= 64 or any(c in "<>\"'&" or not c.isprintable() for c in name):
        raise ConfigError("--name must have 1 to 64 characters, none of them a quote, <, > or &.")
