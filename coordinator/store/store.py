"""The database: a SQLite file for its owner's eyes only, used from many threads.

    with store.write() as connection: ...     # all of it or nothing; one writer at a time
    with store.read() as connection: ...      # a consistent view, beside a writer

SQLite's settings: a write-ahead log, so that readers and the writer do not wait for each other (sqlite.org/wal.html);
synchronous FULL, so that what was answered survives a power cut (an invitation that is used up stays so).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, PoolProxiedConnection, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from coordinator.store.errors import StoreError, named_faults
from coordinator.store.schema import prepare_schema

BUSY_TIMEOUT_S = 10.0
"""How long to wait for another process that writes, such as a command of the operator's."""

PRIVATE = 0o600
_IS_WRITE = "decentllm_is_write"


class Store:
    """Made by `open`; `read` and `write` may be called from any thread, but not inside each other."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._writer = engine.execution_options(**{_IS_WRITE: True})
        self._name = name
        self._writing = threading.Lock()

    @classmethod
    def open(cls, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        """The database in that file, which is made if there is none. Raises StoreError."""
        engine = sqlite_engine(path, busy_timeout_s)
        try:
            make_private_file(path)
            with cls(engine, str(path)).write() as connection:
                prepare_schema(connection, str(path))
            with named_faults(str(path)):
                use_write_ahead_log(engine)
            make_private(path)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, path.name)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state. Raises StoreError."""
        with named_faults(self._name), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or undone if anything is raised. Raises StoreError.

        Writers queue at a lock: SQLite's own waiting is polling, in which a thread may never get its turn."""
        with self._writing, named_faults(self._name), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections; SQLite then folds its write-ahead log into the file."""
        self._engine.dispose()


def sqlite_engine(path: Path, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": busy_timeout_s},
        max_overflow=-1,  # as many connections as threads ask: none waits for another to finish reading
        hide_parameters=True,  # an error's text never has values: labels, hashes
    )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up_connection(connection: DBAPIConnection, _record: object) -> None:
    """`isolation_level` None leaves transactions to us: the driver's own BEGIN comes late and is never IMMEDIATE
    (SQLAlchemy's manual, "Enabling Non-Legacy SQLite Transactional Modes with the sqlite3 or aiosqlite driver")."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    """A writer takes the write lock at once: one that reads first and then cannot get it would have to start over."""
    is_write = connection.get_execution_options().get(_IS_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def use_write_ahead_log(engine: Engine) -> None:
    """The setting stays in the file, so it is made only once the file is known to be ours. Outside a transaction."""
    raw: PoolProxiedConnection = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()
    finally:
        raw.close()


def make_private_file(path: Path) -> None:
    """SQLite would make it readable for all; its own -wal and -shm files take the mode of this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(PRIVATE)
    except OSError as error:
        raise StoreError("store_unwritable", str(path)) from error


def make_private(path: Path) -> None:
    """Also a file that was there before, for example copied from a backup."""
    try:
        for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
            if file.exists():
                file.chmod(PRIVATE)
    except OSError as error:
        raise StoreError("store_unwritable", str(path)) from error
