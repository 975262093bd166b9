"""site.json: where the running pool is. `serve` writes it; commands that print links read it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordinator.config import ConfigError, Site
from coordinator.private_files import write_private

FILE_NAME = "site.json"


def write_site(data_dir: Path, site: Site) -> None:
    write_private(data_dir / FILE_NAME, msgspec.json.encode(site, order="sorted"))


def read_site(data_dir: Path) -> Site:
    """What the pool last said of itself. Raises ConfigError if it never ran here, or the file is damaged."""
    path = data_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Site)
    except FileNotFoundError:
        sentence = f"No pool has run in {data_dir} yet: start it with `decentllm-coordinator serve`, or name its folder"
        raise ConfigError(f"{sentence} with --data-dir.") from None
    except msgspec.DecodeError:
        raise ConfigError(f"{path} is damaged; it is written anew when the pool starts.") from None
