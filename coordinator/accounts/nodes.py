"""Enrolled nodes. A node is its key: once enrolled it needs no invitation, until the operator blocks it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from coordinator.accounts.checks import checked_id, is_worth_noting
from coordinator.accounts.errors import AccountError
from coordinator.accounts.invitations import Purpose, redeem
from coordinator.accounts.values import NodeRecord
from coordinator.store.tables import nodes

MAX_NODES = 100_000
"""An open pool enrols whoever comes: strangers who make keys by the million must not fill the disk."""

_TABLE = nodes.c


class Newcomer(NamedTuple):
    """Who asks to be let in; the hub has checked that it holds the key and that the id follows from it."""

    node_id: str
    public_key: str
    name: str


def is_well_known(connection: Connection, newcomer: Newcomer, now_s: float) -> bool:
    """In, and nothing to write down: when a thousand nodes come back at once, the disk stays out of it."""
    row = connection.execute(select(nodes).where(_TABLE.node_id == newcomer.node_id)).one_or_none()
    if row is None or row.is_blocked or row.name != newcomer.name:
        return False
    return not is_worth_noting(now_s, row.last_seen_s)


def admit(connection: Connection, newcomer: Newcomer, invite: str | None, now_s: float, *, is_open: bool) -> None:
    """Let a known node in, enrol an unknown one. Raises AccountError."""
    is_it = _TABLE.node_id == newcomer.node_id
    known = connection.execute(select(_TABLE.is_blocked).where(is_it)).one_or_none()
    if known is None:
        invitation_id = "" if is_open else _invited(connection, invite, now_s)
        _enrol(connection, newcomer, invitation_id, now_s)
    elif known.is_blocked:
        raise AccountError("node_blocked")
    else:
        connection.execute(update(nodes).where(is_it).values(name=newcomer.name, last_seen_s=now_s))


def listed(connection: Connection) -> list[NodeRecord]:
    """All that ever came, the last seen first."""
    rows = connection.execute(select(nodes).order_by(_TABLE.last_seen_s.desc(), _TABLE.node_id))
    return [
        NodeRecord(row.node_id, row.name, row.first_seen_s, row.last_seen_s, row.invitation_id, row.is_blocked)
        for row in rows
    ]


def set_blocked(connection: Connection, node_id: str, is_blocked: bool) -> None:
    """Raises AccountError."""
    is_it = _TABLE.node_id == checked_id(node_id)
    done = connection.execute(update(nodes).where(is_it).values(is_blocked=is_blocked))
    if done.rowcount == 0:
        raise AccountError("not_found")


def note_seen(connection: Connection, node_ids: Collection[str], now_s: float) -> None:
    """Those that are not enrolled are passed over."""
    seen = [{"seen_id": node_id} for node_id in sorted(node_ids)]
    connection.execute(update(nodes).where(_TABLE.node_id == bindparam("seen_id")).values(last_seen_s=now_s), seen)


def _invited(connection: Connection, invite: str | None, now_s: float) -> str:
    if not invite:
        raise AccountError("invitation_needed")
    return redeem(connection, invite, Purpose.NODES, now_s).invitation_id


def _enrol(connection: Connection, newcomer: Newcomer, invitation_id: str, now_s: float) -> None:
    if connection.execute(select(func.count()).select_from(nodes)).scalar_one() >= MAX_NODES:
        raise AccountError("too_many_nodes")
    row = {"first_seen_s": now_s, "last_seen_s": now_s, "invitation_id": invitation_id, "is_blocked": False}
    connection.execute(insert(nodes).values(**newcomer._asdict(), **row))
