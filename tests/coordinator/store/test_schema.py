"""Only a database of ours, whole and of a known version, is used; another is left as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from coordinator.store import Store, StoreError
from coordinator.store.tables import SCHEMA_VERSION, metadata


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def refusal(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    return caught.value


@pytest.fixture
def old(store: Store, path: Path) -> Path:
    """A database that was used and closed."""
    store.close()
    return path


def test_a_new_database_has_every_table(store: Store) -> None:
    with store.read() as connection:
        assert set(inspect(connection).get_table_names()) == set(metadata.tables)


def test_a_newer_version_is_refused_by_name_and_left_alone(old: Path) -> None:
    change(old, f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}")
    before = old.read_bytes()
    error = refusal(old)
    assert error.code == "store_newer"
    assert "newer version" in str(error)
    assert old.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE bookmarks (url TEXT)")
    path.chmod(0o644)
    before = path.read_bytes()
    assert refusal(path).code == "store_foreign"
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM schema_version",
        "INSERT INTO schema_version VALUES (1)",
        "UPDATE schema_version SET version = 0",
        "UPDATE schema_version SET version = 'many'",
        "DROP TABLE sessions",
    ],
)
def test_a_database_of_ours_that_makes_no_sense_is_damaged(old: Path, statement: str) -> None:
    change(old, statement)
    assert refusal(old).code == "store_damaged"


def test_two_that_open_a_new_file_share_it(path: Path) -> None:
    first, second = Store.open(path), Store.open(path)
    with second.read() as connection:
        assert connection.exec_driver_sql("SELECT version FROM schema_version").scalars().all() == [SCHEMA_VERSION]
    first.close()
    second.close()
