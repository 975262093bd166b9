"""`decentllm-coordinator nodes`: the machines that have ever joined, and what the running pool found of each when
answers were late."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from coordinator.accounts import Accounts
from coordinator.administration import nodes, opened, shown
from coordinator.asking import ask
from coordinator.config import Site
from coordinator.errors import PoolError
from coordinator.folder_lock import is_locked

OVERVIEW_PATH = "/api/operator/overview"


class NodeTroubles(msgspec.Struct):
    node_id: str
    troubles: dict[str, int]


class Overview(msgspec.Struct):
    """Of what the operator's page shows, this."""

    nodes: tuple[NodeTroubles, ...]


class NodeList(NamedTuple):
    """`missing`: why a pool that runs does not say what it found; else empty."""

    text: str
    missing: str = ""


def node_list(data_dir: Path) -> NodeList:
    """As a table. Raises ConfigError, StoreError."""
    with opened(data_dir) as (accounts, site):
        if not is_locked(data_dir):  # counts begin with the pool's start
            return NodeList(nodes(accounts))
        try:
            found = _troubles(data_dir, accounts, site)
        except PoolError as error:  # the list itself is here
            return NodeList(nodes(accounts), str(error))
        return NodeList(nodes(accounts, found))


def _troubles(data_dir: Path, accounts: Accounts, site: Site) -> Mapping[str, str]:
    overview = ask(data_dir, accounts, site, OVERVIEW_PATH, Overview)
    return {node.node_id: troubles_text(node.troubles) for node in overview.nodes}


def troubles_text(troubles: Mapping[str, int]) -> str:
    """Such as `hangs 2, cut 1`; empty where nothing was found."""
    return ", ".join(f"{shown(what)} {num}" for what, num in troubles.items() if num)
