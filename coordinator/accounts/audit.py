"""Who did what and when: lines that are added and never changed (the table refuses it)."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from coordinator.accounts.values import AuditEntry
from coordinator.store.tables import audit_entries

MAX_WHO_CHARACTERS = 64
MAX_WHAT_CHARACTERS = 400
MAX_ENTRIES_SHOWN = 10_000


def add(connection: Connection, who: str, what: str, now_s: float) -> None:
    line = {"who": one_line(who, MAX_WHO_CHARACTERS), "what": one_line(what, MAX_WHAT_CHARACTERS)}
    connection.execute(insert(audit_entries).values(at_s=now_s, **line))


def newest(connection: Connection, limit: int) -> list[AuditEntry]:
    """The newest first."""
    shown = max(0, min(limit, MAX_ENTRIES_SHOWN))
    rows = connection.execute(select(audit_entries).order_by(audit_entries.c.entry_id.desc()).limit(shown))
    return [AuditEntry(row.entry_id, row.at_s, row.who, row.what) for row in rows]


def one_line(text: str, max_characters: int) -> str:
    """Names of models and nodes come from elsewhere: no line breaks or other control characters in the trail."""
    return "".join(char if char.isprintable() else "?" for char in text[:max_characters])
