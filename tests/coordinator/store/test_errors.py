"""What the database's driver raises becomes a sentence for the operator."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import insert

from coordinator.errors import PoolError
from coordinator.store import Store, StoreError
from coordinator.store.errors import SENTENCES, code_of, named_faults
from coordinator.store.tables import audit_entries

LINE = {"at_s": 1.0, "who": "operator", "what": "x" * 400}


@pytest.mark.parametrize("code", SENTENCES)
def test_every_code_has_a_sentence_that_names_the_file(code: str) -> None:
    error = StoreError(code, "pool.db")
    assert isinstance(error, PoolError)
    assert (error.code, error.name) == (code, "pool.db")
    assert str(error).startswith("pool.db ")
    assert str(error).endswith(".")


def test_what_the_driver_does_not_explain_is_a_failure_without_details() -> None:
    assert code_of(None) == "store_failed"
    assert code_of(ValueError("secret")) == "store_failed"


def test_extended_result_codes_count_as_their_primary_one(path: Path) -> None:
    """SQLITE_CANTOPEN_ISDIR and the like: the low byte decides."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (7 << 8)
    assert code_of(error) == "store_failed"
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN | (2 << 8)
    assert code_of(error) == "store_unwritable"


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(KeyError), named_faults("pool.db"):
        raise KeyError


def test_a_full_disk_is_named_and_the_store_goes_on_reading(store: Store) -> None:
    with pytest.raises(StoreError) as caught, store.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 40")
        for _ in range(1000):
            connection.execute(insert(audit_entries).values(LINE))
    assert caught.value.code == "store_full"
    with store.read() as connection:
        assert connection.execute(audit_entries.select()).all() == []


def test_a_file_that_may_not_be_written_is_named(store: Store) -> None:
    with store.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # stays with the one pooled connection
    with pytest.raises(StoreError) as caught, store.write() as connection:
        connection.execute(insert(audit_entries).values(LINE))
    assert caught.value.code == "store_unwritable"


def test_an_error_while_working_names_the_file_without_its_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, store.write() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing_like_it")
    assert str(caught.value).startswith("pool.db ")
    assert str(tmp_path) not in str(caught.value)


def test_no_value_is_in_an_error_or_its_cause(store: Store) -> None:
    with pytest.raises(StoreError) as caught, store.write() as connection:
        connection.execute(insert(audit_entries).values(entry_id=1, **LINE))
        connection.execute(insert(audit_entries).values(entry_id=1, **LINE | {"what": "canary"}))
    assert "canary" not in repr(caught.value)
    assert "canary" not in str(caught.value.__cause__)
