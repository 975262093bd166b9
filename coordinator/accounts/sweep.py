"""What is over is cleared away in passing, whenever something is made anyway."""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, or_

from coordinator.store.tables import api_keys, invitations, operator_links, sessions

KEPT_S = 30 * 86_400.0
"""How long an invitation, key or link that has ended is still listed, and named when somebody comes with it. Not less
than a chat session's life: an invitation's sessions go with it, and it only ended, it was not revoked."""


def sweep(connection: Connection, now_s: float) -> None:
    connection.execute(delete(sessions).where(sessions.c.expires_s <= now_s))
    connection.execute(delete(operator_links).where(operator_links.c.expires_s <= now_s - KEPT_S))
    for table in (invitations, api_keys):
        _forget(connection, table, now_s - KEPT_S)


def _forget(connection: Connection, table: Table, ended_s: float) -> None:
    connection.execute(delete(table).where(or_(table.c.expires_s <= ended_s, table.c.revoked_s <= ended_s)))
