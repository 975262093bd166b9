"""What can be wrong with the database, in sentences for the operator.

SQLite's result codes (sqlite.org/rescode.html) are translated here and nowhere else; the low byte is the primary code.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from coordinator.errors import PoolError

SENTENCES: Mapping[str, str] = {
    "store_damaged": "{name} is damaged or no database: restore it from a backup, or move it away to begin anew.",
    "store_foreign": "{name} is a database of another program: move it away or choose another folder.",
    "store_newer": "{name} was written by a newer version of this program: install that version or a newer one.",
    "store_unwritable": "{name} cannot be opened or written: check the owner and permissions of file and folder.",
    "store_full": "{name} cannot be written: the disk is full.",
    "store_busy": "{name} is held by another program for too long: try again.",
    "store_failed": "{name} could not be used: the disk or the database reported an error.",
}

_CODES: Mapping[int, str] = {
    sqlite3.SQLITE_CORRUPT: "store_damaged",
    sqlite3.SQLITE_NOTADB: "store_damaged",
    sqlite3.SQLITE_CANTOPEN: "store_unwritable",
    sqlite3.SQLITE_PERM: "store_unwritable",
    sqlite3.SQLITE_READONLY: "store_unwritable",
    sqlite3.SQLITE_FULL: "store_full",
    sqlite3.SQLITE_BUSY: "store_busy",
    sqlite3.SQLITE_LOCKED: "store_busy",
}


class StoreError(PoolError):
    """The database cannot be used. `name` is the file: its path while it is opened, its bare name later, because the
    sentence may then reach people who have no business with the operator's folders."""

    def __init__(self, code: str, name: str) -> None:
        super().__init__(code, SENTENCES[code].format(name=name))
        self.name = name


def code_of(error: BaseException | None) -> str:
    """Our code for what the driver raised."""
    return _CODES.get(getattr(error, "sqlite_errorcode", -1) & 0xFF, "store_failed")


@contextmanager
def named_faults(name: str) -> Iterator[None]:
    """Turn what the driver raises into a StoreError about that file. Events of a connection (its PRAGMAs) raise the
    driver's own errors, statements SQLAlchemy's."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(code_of(error.orig), name) from error
    except sqlite3.Error as error:
        raise StoreError(code_of(error), name) from error
