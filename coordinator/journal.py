"""Requests and their tokens on disk, so that answers survive the coordinator. SQLite, in a file of its own.

    journal = Journal.open(data_dir / JOURNAL_NAME)      # never fails because of what is in the file
    kept = journal.take_kept()                           # what the coordinator before this one left
    log = JournalLog(journal, env)                       # a TokenLog

What is on disk is what people wrote and were answered. So the file is its owner's alone, what is deleted is overwritten
(secure_delete), and it is deleted as soon as nobody can come back for it.

A request is synced to the disk before anything of its answer is shown (synchronous FULL). Tokens are written and not
synced (NORMAL; sqlite.org/pragma.html#pragma_synchronous): they survive the death of this process, and a power cut may
take the last of them. Then they are computed again, from the same seeds. To sync each group of 50 tokens was measured
at 1.6 ms in the median and 7.6 ms at p99, against 0.08 and 4.2 ms without (SQLite 3.40, a virtual disk): that would be
up to 500 syncs a second on the disk of somebody who gives a pool its room, for what only a power cut could take.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from coordinator.errors import StorageUnavailable
from coordinator.private_files import PRIVATE_FILE, make_private_folder
from coordinator.token_log import Accepted, Ended, Entry, Kept, Page
from protocol.env import Env
from protocol.values import FinishReason, SessionId

log = logging.getLogger(__name__)

JOURNAL_NAME = "answers.sqlite3"
VERSION = 1
BUSY_TIMEOUT_S = 2.0
TRUNCATE_EVERY_S = 30.0
"""What was deleted stays in SQLite's write-ahead log until that is emptied: not for longer than about this."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
SIDE_FILES = ("", "-wal", "-shm")
_SCHEMA = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL UNIQUE, record BLOB NOT NULL,
    checksum INTEGER NOT NULL, num_lives INTEGER NOT NULL DEFAULT 0, finish TEXT, ended_s REAL
);
CREATE TABLE tokens (
    row INTEGER PRIMARY KEY, number INTEGER NOT NULL, position INTEGER NOT NULL, tokens BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
"""
# Tokens have no index: all sessions append to the same page. One per session would be a page per session and commit.

_decoder: msgspec.msgpack.Decoder[Accepted] = msgspec.msgpack.Decoder(Accepted)


class _DamagedError(StorageUnavailable):
    """The file is not what we wrote."""


class Journal:
    """The file. May be called from any thread; every method that writes raises StorageUnavailable."""

    def __init__(self, path: Path) -> None:
        """Raises _DamagedError for a file that cannot be used, else StorageUnavailable."""
        self._path = path
        self._turn = threading.Lock()
        self._numbers: dict[SessionId, tuple[int, int]] = {}
        """By session: its number, and the row behind which its tokens begin."""
        self._last_row = 0
        with _named_faults():
            self._db = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
                self._kept = self._read()
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def open(cls, path: Path) -> Journal:
        """The journal in that file. One that is damaged is set aside, with a line in the log, and a new one begun."""
        _make_private(path)
        try:
            return cls(path)
        except _DamagedError as error:
            aside = _set_aside(path)
            log.error(
                "the journal of answers is damaged (%s): it was moved to %s, a new one begins", error.reason, aside
            )
            _make_private(path)
            return cls(path)

    def close(self) -> None:
        """SQLite folds its write-ahead log into the file."""
        with self._turn:
            self._db.close()

    # ------------------------------------------------------------ what was left

    def take_kept(self) -> list[Kept]:
        """What was in it when it was opened, once."""
        kept, self._kept = self._kept, []
        return kept

    def _read(self) -> list[Kept]:
        """Everything in it, in the order of arrival. Each unfinished answer has one life more from now on."""
        with self._writing(is_synced=True):
            rows = self._db.execute(
                "SELECT number, session_id, record, checksum, num_lives, finish, ended_s FROM answers ORDER BY number"
            ).fetchall()
            self._db.execute("UPDATE answers SET num_lives = num_lives + 1 WHERE finish IS NULL")
            tokens = self._all_tokens()
        kept = []
        for number, session_id, record, checksum, num_lives, finish, ended_s in rows:
            accepted = _accepted(record, checksum, session_id)
            self._numbers[SessionId(session_id)] = number, 0
            if accepted is None:
                log.error("an answer in the journal cannot be read; it is dropped")
                self.write(Page(forgotten=(SessionId(session_id),)))
                continue
            is_whole = all(zlib.crc32(data) == checksum for _, data, checksum in tokens.get(number, []))
            ended = (
                None if finish is None or not is_whole else Ended(SessionId(session_id), FinishReason(finish), ended_s)
            )
            kept.append(Kept(accepted, _in_a_row(accepted, tokens.get(number, [])), ended, num_lives + 1))
        return kept

    def _all_tokens(self) -> dict[int, list[tuple[int, bytes, int]]]:
        found: dict[int, list[tuple[int, bytes, int]]] = {}
        for row, number, position, data, checksum in self._db.execute("SELECT * FROM tokens ORDER BY row"):
            self._last_row = row
            found.setdefault(number, []).append((position, data, checksum))
        return found

    # ------------------------------------------------------------ writing

    def write(self, page: Page) -> None:
        """All of it or nothing. What came and went within the page leaves no trace."""
        brief = {a.order.session_id for a in page.accepted} & set(page.forgotten)
        new = [accepted for accepted in page.accepted if accepted.order.session_id not in brief]
        numbers, last_row = dict(self._numbers), self._last_row
        try:
            with self._writing(is_synced=bool(new)):
                self._accept(new)
                self._commit(page.entries)
                self._end(page.ended)
                self._forget(page.forgotten)
        except BaseException:
            self._numbers, self._last_row = numbers, last_row
            raise

    def _accept(self, new: Iterable[Accepted]) -> None:
        for accepted in new:
            if accepted.order.session_id in self._numbers:
                continue  # the page was written when whoever waited for that had to go
            session_id, record = accepted.order.session_id, msgspec.msgpack.encode(accepted)
            values = (session_id, record, zlib.crc32(record))
            cursor = self._db.execute("INSERT INTO answers (session_id, record, checksum) VALUES (?, ?, ?)", values)
            self._numbers[session_id] = cursor.lastrowid or 0, self._last_row

    def _commit(self, entries: Iterable[Entry]) -> None:
        rows = []
        for session_id, position, tokens in entries:
            if session_id in self._numbers:
                data = struct.pack(f"<{len(tokens)}i", *tokens)
                self._last_row += 1
                rows.append((self._last_row, self._numbers[session_id][0], position, data, zlib.crc32(data)))
        self._db.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", rows)

    def _end(self, ended: Iterable[Ended]) -> None:
        rows = [(one.finish.value, one.at_s, one.session_id) for one in ended]
        self._db.executemany("UPDATE answers SET finish = ?, ended_s = ? WHERE session_id = ?", rows)

    def _forget(self, forgotten: Iterable[SessionId]) -> None:
        for session_id in forgotten:
            number, first_row = self._numbers.pop(session_id, (0, 0))
            if number:
                self._db.execute("DELETE FROM tokens WHERE row > ? AND number = ?", (first_row, number))
                self._db.execute("DELETE FROM answers WHERE number = ?", (number,))

    @property
    def is_empty(self) -> bool:
        return not self._numbers

    def truncate(self) -> None:
        """Empty the write-ahead log: what was deleted is nowhere after this."""
        with self._turn, _named_faults():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _writing(self, *, is_synced: bool) -> Iterator[None]:
        with self._turn, _named_faults():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # after some faults SQLite has rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != (VERSION if tables else 0):
            raise _DamagedError(f"its version is {version}, this program's {VERSION}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA secure_delete = ON")
        if not tables:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _DamagedError(verdict)


class JournalLog:
    """A TokenLog on a journal, off the event loop."""

    def __init__(self, journal: Journal, env: Env) -> None:
        self._journal = journal
        self._env = env
        self._truncate_at_s = 0.0

    async def write(self, page: Page) -> None:
        """Raises StorageUnavailable."""
        now_s = self._env.clock.monotonic()
        truncates = bool(page.forgotten) and now_s >= self._truncate_at_s
        if truncates:
            self._truncate_at_s = now_s + TRUNCATE_EVERY_S
        await self._env.run_blocking(self._write, page, truncates)

    def _write(self, page: Page, truncates: bool) -> None:
        self._journal.write(page)
        if page.forgotten and (truncates or self._journal.is_empty):
            with suppress(StorageUnavailable):  # the page is written; there will be a next time
                self._journal.truncate()


@contextmanager
def _named_faults() -> Iterator[None]:
    """What the driver raises, as ours. The sentence may reach users: it says nothing of files."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", -1) & 0xFF in DAMAGED:
            raise _DamagedError(str(error)) from error
        raise StorageUnavailable(str(error)) from error


def _accepted(record: bytes, checksum: int, session_id: str) -> Accepted | None:
    if zlib.crc32(record) != checksum:
        return None
    try:
        accepted = _decoder.decode(record)
    except (msgspec.DecodeError, ValueError):
        return None
    return accepted if accepted.order.session_id == session_id else None


def _in_a_row(accepted: Accepted, rows: Iterable[tuple[int, bytes, int]]) -> tuple[int, ...]:
    """The answer's tokens as far as they follow each other undamaged; what was written twice counts once."""
    begin, tokens = len(accepted.order.prompt), list[int]()
    for position, data, checksum in rows:
        num_known = begin + len(tokens) - position
        if num_known < 0 or zlib.crc32(data) != checksum:
            break
        tokens += struct.unpack(f"<{len(data) // 4}i", data)[num_known:]
    return tuple(tokens)


def _make_private(path: Path) -> None:
    """SQLite's own -wal and -shm files take the mode of this one."""
    make_private_folder(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    for suffix in SIDE_FILES:
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.chmod(PRIVATE_FILE)


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in SIDE_FILES:
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside
