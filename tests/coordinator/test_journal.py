"""The journal on disk: what is in it after which accident, and who can read it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from coordinator.errors import StorageUnavailable
from coordinator.journal import JOURNAL_NAME, TRUNCATE_EVERY_S, Journal, JournalLog
from coordinator.sessions import Order
from coordinator.token_log import Accepted, Claim, Ended, Kept, Page
from protocol.values import FinishReason, Sampling
from tests.fakes import pool_facts as facts
from tests.fakes.virtual_env import VirtualWorld
from tests.fakes.virtual_loop import on_virtual_time

ONE, TWO, THREE = facts.session_id(1), facts.session_id(2), facts.session_id(3)
SECRET = (777_777_771, 777_777_772, 777_777_773)
"""Tokens that can be found in a file."""


def accepted(number: int = 1, prompt: tuple[int, ...] = (5, 6, 7)) -> Accepted:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, seed=2**63 - 1)
    order = Order(facts.session_id(number), facts.DIGEST, prompt, 9, sampling, (2, 3), "key abc", 12.5)
    return Accepted(order, Claim(f"chatcmpl-{number}", is_resumable=True, retry_key="again", note=b"\x00note"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool" / JOURNAL_NAME


def reopened(journal: Journal, path: Path) -> list[Kept]:
    journal.close()
    again = Journal.open(path)
    kept = again.take_kept()
    again.close()
    return kept


def test_what_was_accepted_comes_back_whole_and_in_order(path: Path) -> None:
    journal = Journal.open(path)
    assert journal.take_kept() == []
    journal.write(Page(accepted=(accepted(2), accepted(1)), entries=((ONE, 3, (7, 8)), (TWO, 3, (9,)), (ONE, 5, (1,)))))
    journal.write(Page(entries=((TWO, 4, (4, 2)),), ended=(Ended(TWO, FinishReason.STOP, 1000.5),)))
    first, second = reopened(journal, path)
    assert first == Kept(accepted(2), (9, 4, 2), Ended(TWO, FinishReason.STOP, 1000.5), 1)
    assert second == Kept(accepted(1), (7, 8, 1), None, 1)


def test_every_coordinator_that_takes_an_answer_up_is_counted(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(),)))
    assert [reopened(Journal.open(path), path)[0].num_lives for _ in range(2)] == [2, 4]


def test_what_was_forgotten_does_not_come_back(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(1), accepted(2)), entries=((ONE, 3, (7,)), (TWO, 3, (8,)))))
    journal.write(Page(entries=((TWO, 4, (9,)),), forgotten=(ONE, THREE)))
    assert [kept.tokens for kept in reopened(journal, path)] == [(8, 9)]


def test_tokens_of_answers_that_are_not_in_it_are_left_out(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(
        Page(accepted=(accepted(1), accepted(2)), forgotten=(TWO,), entries=((TWO, 3, (1,)), (THREE, 3, (1,))))
    )
    assert [kept.accepted for kept in reopened(journal, path)] == [accepted(1)]


def test_a_page_that_is_written_twice_counts_once(path: Path) -> None:
    """Its writer was stopped before it heard that the page was there."""
    journal = Journal.open(path)
    page = Page(accepted=(accepted(),), entries=((ONE, 3, (7, 8)),))
    journal.write(page)
    journal.write(page)
    journal.write(Page(entries=((ONE, 5, (9,)),)))
    assert [kept.tokens for kept in reopened(journal, path)] == [(7, 8, 9)]


def test_only_its_owner_can_read_it(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(),)))
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {JOURNAL_NAME, f"{JOURNAL_NAME}-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    journal.close()
    path.chmod(0o644)
    Journal.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@on_virtual_time
async def test_a_forgotten_prompt_is_in_no_file(path: Path) -> None:
    env = VirtualWorld().env()
    journal = Journal.open(path)
    log = JournalLog(journal, env)
    needle = b"".join(token.to_bytes(4, "little") for token in SECRET)
    packed = b"\xce".join(token.to_bytes(4, "big") for token in SECRET)
    for number in range(1, 40):
        await log.write(Page(accepted=(accepted(number, SECRET * 40),)))
        await log.write(Page(entries=((facts.session_id(number), 120, SECRET * 40),)))
    assert is_somewhere(path, needle) and is_somewhere(path, packed)
    await log.write(Page(forgotten=tuple(facts.session_id(number) for number in range(1, 39))))
    await env.clock.sleep(TRUNCATE_EVERY_S + 1)
    await log.write(Page(forgotten=(facts.session_id(39),)))
    assert not is_somewhere(path, needle) and not is_somewhere(path, packed)
    journal.close()


def is_somewhere(path: Path, needle: bytes) -> bool:
    return any(needle in file.read_bytes() for file in path.parent.iterdir())


# ---------------------------------------------------------------- accidents


def test_whatever_of_the_last_write_is_torn_the_ones_before_are_there(path: Path, tmp_path: Path) -> None:
    """As after a power cut: the file ends at any byte of what was written last, or has something else there."""
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(),), entries=((ONE, 3, (7, 8)),)))
    wal = path.with_name(f"{JOURNAL_NAME}-wal")
    whole_before = wal.read_bytes()
    journal.write(Page(entries=((ONE, 5, (9,)),)))
    whole, base = wal.read_bytes(), path.read_bytes()
    journal.close()
    cuts = [*range(len(whole_before), len(whole), 61), len(whole) - 1]
    for number, cut in enumerate(cuts):
        for torn in (whole[:cut], whole[:cut] + b"\xa5" * (len(whole) - cut)):
            copy = tmp_path / f"{number} {len(torn)}" / JOURNAL_NAME
            copy.parent.mkdir()
            copy.write_bytes(base)
            copy.with_name(wal.name).write_bytes(torn)
            again = Journal.open(copy)
            assert [kept.tokens for kept in again.take_kept()] == [(7, 8)]
            again.close()


@pytest.mark.expected_logs("the journal of answers is damaged")
@pytest.mark.parametrize("rubbish", [b"no database", b"\x00" * 8192, b"SQLite format 3\x00" + b"\xff" * 9000])
def test_a_file_that_is_no_journal_is_set_aside_and_a_new_one_begun(path: Path, rubbish: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(rubbish)
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(),)))
    assert path.with_name(f"{JOURNAL_NAME}.damaged-1").read_bytes() == rubbish
    assert len(reopened(journal, path)) == 1


@pytest.mark.expected_logs("the journal of answers is damaged")
def test_damaged_journals_do_not_replace_each_other(path: Path) -> None:
    for number in (1, 2):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"rubbish %d" % number)
        Journal.open(path).close()
    assert {p.name for p in path.parent.glob("*.damaged-*")} == {f"{JOURNAL_NAME}.damaged-{n}" for n in (1, 2)}


@pytest.mark.allowed_logs("the journal of answers is damaged", "cannot be read; it is dropped")
def test_no_damage_anywhere_in_the_file_keeps_the_pool_from_starting(path: Path, tmp_path: Path) -> None:
    """And what is read is what was written, or a beginning of it."""
    journal = Journal.open(path)
    for number in range(1, 9):
        journal.write(Page(accepted=(accepted(number),), entries=((facts.session_id(number), 3, (7, 8, 9)),)))
    journal.close()
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        copy = tmp_path / str(place) / JOURNAL_NAME
        copy.parent.mkdir()
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        again = Journal.open(copy)
        for kept in again.take_kept():
            assert kept.accepted == accepted(int(kept.accepted.order.session_id, 16))
            assert kept.tokens == (7, 8, 9)[: len(kept.tokens)]
        again.write(Page(accepted=(accepted(100),)))
        again.close()


@pytest.mark.expected_logs("the journal of answers is damaged")
def test_a_journal_of_another_version_is_set_aside(path: Path) -> None:
    Journal.open(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    Journal.open(path).close()
    assert path.with_name(f"{JOURNAL_NAME}.damaged-1").exists()


def test_a_full_disk_is_an_error_of_ours_and_nothing_is_half_written(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(1),), entries=((ONE, 3, (7,)),)))
    (size,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {size}")
    large = accepted(2, tuple(range(100_000)))
    for _ in range(2):
        with pytest.raises(StorageUnavailable) as caught:
            journal.write(Page(accepted=(large,), entries=((ONE, 4, (8,)),)))
        assert caught.value.code == "storage_unavailable"
        assert str(path) not in str(caught.value)
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.write(Page(accepted=(large,), entries=((ONE, 4, (9,)),)))
    assert [kept.tokens for kept in reopened(journal, path)] == [(7, 9), ()]


def test_a_journal_that_another_program_holds_is_an_error_of_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.journal.BUSY_TIMEOUT_S", 0.01)
    journal = Journal.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="disk is full or busy"):
        journal.write(Page(accepted=(accepted(),)))
    other.execute("COMMIT")
    other.close()
    journal.write(Page(accepted=(accepted(),)))
    assert len(reopened(journal, path)) == 1


def test_an_answer_that_lost_tokens_to_the_disk_is_not_taken_for_complete(path: Path) -> None:
    journal = Journal.open(path)
    journal.write(Page(accepted=(accepted(),), entries=((ONE, 3, (7, 8)), (ONE, 5, (9,)), (ONE, 6, (4,)))))
    journal.write(Page(ended=(Ended(ONE, FinishReason.STOP, 1000.5),)))
    journal._db.execute("UPDATE tokens SET tokens = x'01020304' WHERE position = 5")
    assert reopened(journal, path) == [Kept(accepted(), (7, 8), None, 1)]
