"""The database file: private, durable, used from many threads, refused by name when it is no good."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from coordinator.store import Store, StoreError
from coordinator.store.store import make_private_file, sqlite_engine
from coordinator.store.tables import audit_entries, sessions

NUM_THREADS = 8
NUM_LINES = 20


def add_line(store: Store, what: str = "did it") -> None:
    with store.write() as connection:
        connection.execute(insert(audit_entries).values(at_s=1.0, who="operator", what=what))


def num_lines(store: Store) -> int:
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(audit_entries)).scalar_one()


def pragma(store: Store, name: str) -> object:
    with store.read() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    return caught.value


# ---------------------------------------------------------------- how it is kept


def test_what_was_written_is_there_after_reopening(store: Store, path: Path) -> None:
    add_line(store)
    store.close()
    again = Store.open(path)
    assert num_lines(again) == 1
    again.close()


def test_folders_are_made(tmp_path: Path) -> None:
    Store.open(tmp_path / "a" / "b" / "pool.db").close()
    assert (tmp_path / "a" / "b" / "pool.db").exists()


def test_names_with_odd_characters_are_names(tmp_path: Path) -> None:
    path = tmp_path / "50% off? #1 file:x"
    Store.open(path).close()
    assert path.exists()


def test_settings_are_those_of_a_durable_database(store: Store) -> None:
    assert pragma(store, "journal_mode") == "wal"
    assert pragma(store, "synchronous") == 2  # FULL
    assert pragma(store, "foreign_keys") == 1


def test_a_reference_to_nothing_is_refused(store: Store) -> None:
    row = {"session_id": "s", "token_hash": "h", "role": "chat", "label": "x", "invitation_id": "gone"}
    times = {"created_s": 0.0, "last_used_s": 0.0, "expires_s": 0.0}
    with pytest.raises(StoreError) as caught, store.write() as connection:
        connection.execute(insert(sessions).values(row | times))
    assert isinstance(caught.value.__cause__, IntegrityError)


def test_all_files_are_private_while_it_is_used(store: Store, path: Path) -> None:
    add_line(store)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["pool.db", "pool.db-shm", "pool.db-wal"]
    assert {mode_of(file) for file in files} == {0o600}


def test_files_that_others_could_read_are_made_private(store: Store, path: Path) -> None:
    add_line(store)
    for file in path.parent.iterdir():
        file.chmod(0o644)
    again = Store.open(path)
    assert {mode_of(file) for file in path.parent.iterdir()} == {0o600}
    again.close()


def test_a_new_file_is_private_from_its_first_moment(path: Path) -> None:
    make_private_file(path)
    assert mode_of(path) == 0o600


def test_closing_leaves_one_file(store: Store, path: Path) -> None:
    add_line(store)
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["pool.db"]


# ---------------------------------------------------------------- transactions


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        connection.execute(insert(audit_entries).values(at_s=1.0, who="a", what="b"))
        raise ZeroDivisionError
    assert num_lines(store) == 0


def test_a_reader_sees_one_state_beside_a_writer(store: Store) -> None:
    count = select(func.count()).select_from(audit_entries)
    with store.read() as connection:
        before = connection.execute(count).scalar_one()
        add_line(store)
        assert connection.execute(count).scalar_one() == before
    assert num_lines(store) == before + 1


def test_threads_that_write_at_once_all_get_their_turn(store: Store, path: Path) -> None:
    """They queue: this store would not wait a moment for SQLite's own lock."""
    begin = Barrier(NUM_THREADS)
    impatient = Store(sqlite_engine(path, busy_timeout_s=0.0), path.name)

    def write(number: int) -> None:
        begin.wait()
        for line in range(NUM_LINES):
            add_line(impatient, f"{number}.{line}")
            assert num_lines(impatient) > 0

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(write, range(NUM_THREADS)))
    impatient.close()
    assert num_lines(store) == NUM_THREADS * NUM_LINES


def test_a_writer_holds_the_write_lock_from_its_beginning(store: Store, path: Path) -> None:
    """Or what it read could be outdated by the time it writes, and it would fail."""
    other = Store(sqlite_engine(path, busy_timeout_s=0.01), path.name)
    with store.write(), pytest.raises(StoreError) as caught:
        add_line(other)
    assert caught.value.code == "store_busy"
    other.close()


def test_a_second_process_may_use_the_file_too(store: Store, path: Path) -> None:
    other = Store.open(path)
    begin = Barrier(2)

    def write(which: Store) -> None:
        begin.wait()
        for _ in range(NUM_LINES):
            add_line(which)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [store, other]))
    assert num_lines(store) == num_lines(other) == 2 * NUM_LINES
    other.close()


def test_a_file_that_somebody_holds_is_named_in_the_end(store: Store, path: Path) -> None:
    patient = Store(sqlite_engine(path, busy_timeout_s=0.01), path.name)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError) as caught:
            add_line(patient)
        holder.execute("ROLLBACK")
    assert caught.value.code == "store_busy"
    add_line(patient)
    assert num_lines(store) == 1
    patient.close()


# ---------------------------------------------------------------- files that are no good


def test_an_empty_file_is_a_new_database(path: Path) -> None:
    path.touch()
    store = Store.open(path)
    assert num_lines(store) == 0
    assert mode_of(path) == 0o600
    store.close()


@pytest.mark.parametrize("content", [b"not a database", b"\xff" * 50_000, b"SQLite format 3\0" + b"\1" * 8_000])
def test_another_file_is_refused_and_unchanged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == "store_damaged"
    assert str(path) in str(error)
    assert path.read_bytes() == content


def test_a_damaged_page_is_found_when_opening(store: Store, path: Path) -> None:
    for _ in range(NUM_LINES):
        add_line(store, "x" * 400)
    store.close()
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)
    assert refusal(path).code == "store_damaged"


def test_a_file_cut_short_is_refused(store: Store, path: Path) -> None:
    for _ in range(NUM_LINES):
        add_line(store, "x" * 400)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path).code == "store_damaged"


def test_a_folder_in_its_place_is_named(path: Path) -> None:
    path.mkdir()
    error = refusal(path)
    assert error.code == "store_unwritable"
    assert str(path) in str(error)


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "pool.db").code == "store_unwritable"


def test_permissions_that_cannot_be_set_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's file that we may write: its secrets' hashes would stay open to all."""

    def refuse(_self: Path, _mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    assert refusal(path).code == "store_unwritable"
