"""What a killed writer leaves in SQLite's write-ahead log."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from benchmarks.endurance.kills import has_open_transaction


def opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    database.execute("CREATE TABLE rows (data BLOB)")
    return database


def copied(path: Path) -> Path:
    """As it would be left now."""
    return Path(shutil.copy(f"{path}-wal", path.with_name("left-wal")))


def test_a_transaction_without_its_commit_is_seen_until_it_has_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    database = opened(path)
    try:
        assert not has_open_transaction(copied(path))
        database.execute("BEGIN")
        for _ in range(50):
            database.execute("INSERT INTO rows VALUES (randomblob(3000))")
        assert has_open_transaction(copied(path))
        database.execute("COMMIT")
        assert not has_open_transaction(copied(path))
    finally:
        database.close()


def test_no_log_has_no_open_transaction(tmp_path: Path) -> None:
    assert not has_open_transaction(tmp_path / "none-wal")
