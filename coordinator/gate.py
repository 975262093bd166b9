"""Who may contribute: the hub asks before it welcomes a node."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Protocol

from coordinator.accounts import Accounts, StoreError
from coordinator.errors import PoolError
from protocol.env import Env
from protocol.values import NodeId


class GateFailed(PoolError):  # noqa: N818 - reads as what happened
    """The gate itself does not work: the node is not to blame, and may try again."""

    def __init__(self, code: str) -> None:
        super().__init__(code, "The pool cannot look up who may contribute at the moment; its operator has to help.")


class NodeGate(Protocol):
    """Asked once a node has proven that it holds its key."""

    async def admit(self, node_id: NodeId, public_key: str, name: str, invite: str | None) -> None:
        """Returns if the node may come in. Raises PoolError if it may not, GateFailed if nobody knows."""

    async def note_seen(self, node_ids: Collection[NodeId]) -> None:
        """These nodes are connected, or were until now."""


class OpenGate:
    """Lets everybody in and keeps no record."""

    async def admit(self, node_id: NodeId, public_key: str, name: str, invite: str | None) -> None:
        """Always."""

    async def note_seen(self, node_ids: Collection[NodeId]) -> None:
        """Nothing to note."""


class AccountsGate:
    """Lets in whom the accounts know or an invitation brings; in an open pool everybody who is not blocked."""

    def __init__(self, accounts: Accounts, env: Env, is_open: bool) -> None:
        self._accounts = accounts
        self._env = env
        self._is_open = is_open

    async def admit(self, node_id: NodeId, public_key: str, name: str, invite: str | None) -> None:
        """Raises AccountError or GateFailed."""
        admit = partial(self._accounts.admit_node, is_open=self._is_open)
        try:
            await self._env.run_blocking(admit, node_id, public_key, name, invite)
        except StoreError as error:
            raise GateFailed(error.code) from error

    async def note_seen(self, node_ids: Collection[NodeId]) -> None:
        """For the operator's page: seen now."""
        await self._env.run_blocking(self._accounts.note_seen, list(node_ids))
