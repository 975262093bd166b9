"""Sessions: which rows they accept, in what pieces they give them to a step, and what they send."""

import pytest
import torch
from msgspec import structs

from client.ipc import StartSession
from client.runtime.device import Device
from client.runtime.errors import KvFullError, NothingKeptError, StaleEpochError
from client.runtime.kv_cache import KvCache, LayerShape
from client.runtime.sessions import Rows, Session, SessionBook
from protocol.errors import FrameError, FrameFault
from protocol.frames import Phase, Segment
from protocol.values import SessionId, StepTiming

ALICE, BOB = SessionId("a" * 32), SessionId("b" * 32)


@pytest.fixture
def cache(device: Device) -> KvCache:
    return KvCache([LayerShape(0, 1, 2, 2)], 64 * 16, torch.float32, device)


@pytest.fixture
def book(cache: KvCache) -> SessionBook:
    return SessionBook(cache)


def start(session_id: str = ALICE, epoch: int = 1, num_reserved: int = 32) -> StartSession:
    return StartSession(session_id, epoch, 1, 3, 10, num_reserved, next_link=7, next_stage=2)


def rows(position: int, number: int, compute_us: int = 0) -> Rows:
    return Rows(position, torch.arange(position, position + number)[:, None].float(), StepTiming(compute_us))


def segment(session_id: SessionId = ALICE, epoch: int = 1, stage: int = 1) -> Segment:
    return Segment(session_id, epoch, 0, 1, 0, stage, Phase.PREFILL)


def compute(session: Session, number: int) -> Rows:
    taken = session.take(number)
    session.table.advance(number)
    return taken


def test_rows_are_accepted_in_order_only(book: SessionBook) -> None:
    session = book.open(start())
    session.push(rows(0, 4))
    for position in (0, 3, 5):
        with pytest.raises(FrameError) as refused:
            session.push(rows(position, 1))
        assert refused.value.code is FrameFault.POSITION
    session.push(rows(4, 1))
    assert session.num_waiting == 5


def test_rows_beyond_the_reservation_find_the_pool_full(book: SessionBook) -> None:
    session = book.open(start(num_reserved=16))
    session.push(rows(0, 16))
    with pytest.raises(KvFullError):
        session.push(rows(16, 1))


def test_waiting_rows_are_taken_in_pieces_of_any_size(book: SessionBook) -> None:
    session = book.open(start())
    session.push(rows(0, 4, compute_us=1))
    session.push(rows(4, 4, compute_us=2))
    first, second = compute(session, 6), compute(session, 2)
    assert (first.position, first.values[:, 0].tolist()) == (0, [0, 1, 2, 3, 4, 5])
    assert (second.position, second.values[:, 0].tolist()) == (6, [6, 7])
    assert first.timing == second.timing == StepTiming(2)
    assert not session.waiting


def test_segments_are_counted_and_carry_the_phase(book: SessionBook) -> None:
    session = book.open(start())
    first, second = session.segment(rows(0, 10, compute_us=5)), session.segment(rows(10, 1))
    assert (first.seq, first.phase, first.stage, first.compute_us) == (0, Phase.PREFILL, 2, 5)
    assert (second.seq, second.phase, second.position) == (1, Phase.DECODE, 10)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (segment(BOB), FrameFault.UNKNOWN_SESSION),
        (segment(epoch=0), FrameFault.EPOCH),
        (segment(epoch=2), FrameFault.EPOCH),
        (segment(stage=0), FrameFault.STAGE),
    ],
)
def test_segments_for_nobody_here_are_refused(wrong: Segment, fault: FrameFault, book: SessionBook) -> None:
    book.open(start())
    with pytest.raises(FrameError) as refused:
        book.find(wrong)
    assert refused.value.code is fault


def test_a_new_epoch_ends_the_old_one(book: SessionBook, cache: KvCache) -> None:
    book.open(start()).push(rows(0, 4))
    session = book.open(start(epoch=2))
    assert book.find(segment(epoch=2)) is session
    assert (session.num_received, len(book), cache.num_free_tokens) == (0, 1, cache.num_tokens - 32)


def test_an_older_epoch_does_not_come_back(book: SessionBook) -> None:
    session = book.open(start(epoch=2))
    with pytest.raises(StaleEpochError, match="epoch 1 of this session is over"):
        book.open(start(epoch=1))
    assert book.find(segment(epoch=2)) is session


def test_an_end_of_an_older_epoch_leaves_the_session_open(book: SessionBook) -> None:
    book.open(start(epoch=2))
    book.end(ALICE, 1)
    assert len(book) == 1
    book.end(ALICE, 2)
    assert len(book) == 0


def test_closing_twice_gives_the_room_back_once(book: SessionBook, cache: KvCache) -> None:
    session = book.open(start())
    book.close(session)
    book.close(session)
    book.end(BOB, 9)
    assert cache.num_free_tokens == cache.num_tokens
    cache.validate()


def test_those_served_longest_ago_stand_first(book: SessionBook) -> None:
    for session_id in (ALICE, BOB):
        book.open(start(session_id)).push(rows(0, 2))
    assert book.waiting() == [(ALICE, 2), (BOB, 2)]
    compute(book.served(ALICE), 1)
    assert book.waiting() == [(BOB, 2), (ALICE, 1)]


# ---------------------------------------------------------------- going on in a newer epoch


def resumed(num_kept: int, next_from: int = 0, epoch: int = 2, num_reserved: int = 32) -> StartSession:
    return structs.replace(start(epoch=epoch, num_reserved=num_reserved), num_kept_tokens=num_kept, next_from=next_from)


def computed_and_sent(book: SessionBook, number: int) -> Session:
    session = book.open(start())
    session.push(rows(0, number))
    book.sent.add(ALICE, 0, compute(session, number).values)
    return session


def test_a_session_goes_on_from_what_is_to_be_kept_and_forgets_the_rest(book: SessionBook, cache: KvCache) -> None:
    """What was sent of later rows, too: their tokens were never committed, and may be others now."""
    before = computed_and_sent(book, 8)
    before.push(rows(8, 3))
    before.is_finished = True
    num_free = cache.num_free_tokens
    session = book.open(resumed(6))
    assert session.table is before.table
    assert (session.table.length, session.num_received, session.num_waiting) == (6, 6, 0)
    assert book.sent.num_rows(ALICE) == 6
    assert cache.num_free_tokens == num_free
    session.push(rows(6, 1))
    assert book.waiting() == [(ALICE, 1)]


@pytest.mark.parametrize(("next_from", "sends_again"), [(0, True), (5, True), (6, False), (9, False)])
def test_rows_are_sent_again_if_the_next_stage_lacks_some(book: SessionBook, next_from: int, sends_again: bool) -> None:
    computed_and_sent(book, 8)
    assert book.open(resumed(6, next_from)).sends_again is sends_again


@pytest.mark.parametrize("start_again", [resumed(9), resumed(6, num_reserved=64)])
def test_what_is_not_there_is_not_kept(book: SessionBook, cache: KvCache, start_again: StartSession) -> None:
    computed_and_sent(book, 8)
    with pytest.raises(NothingKeptError):
        book.open(start_again)
    assert len(book) == 0
    assert cache.num_free_tokens == cache.num_tokens
    assert book.sent.num_bytes == 0
