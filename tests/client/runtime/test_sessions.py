"""Sessions: which rows they accept, in what pieces they give them to a step, and what they send."""

import pytest
import torch
from msgspec import structs

from client.ipc import EndSession, StartSession
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
    book.end(EndSession(ALICE, 1))
    assert len(book) == 1
    book.end(EndSession(ALICE, 2))
    assert len(book) == 0


def test_closing_twice_gives_the_room_back_once(book: SessionBook, cache: KvCache) -> None:
    session = book.open(start())
    book.close(session)
    book.close(session)
    book.end(EndSession(BOB, 9))
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


# ---------------------------------------------------------------- beginning with what others have computed


NAMES = tuple(f"{number:032x}" for number in range(1, 5))


def named(session_id: SessionId, num_prompt: int = 40, epoch: int = 1, names: tuple[str, ...] = NAMES) -> StartSession:
    return StartSession(session_id, epoch, 1, 3, num_prompt, 48, next_link=7, next_stage=2, prefix_hashes=names)


def leaves(book: SessionBook, number: int, num_sound: int | None = None, end: EndSession | None = None) -> None:
    """Alice computes so many rows, and ends."""
    session = book.open(named(ALICE))
    book.push(session, rows(session.num_received, number - session.num_received))
    compute(session, number - session.table.length)
    session.num_sound = number if num_sound is None else num_sound
    book.end(end or EndSession(ALICE, 1))


@pytest.mark.parametrize(("number", "found"), [(15, 0), (16, 16), (40, 32)])
def test_whole_blocks_of_an_ended_session_are_offered_to_the_next(book: SessionBook, number: int, found: int) -> None:
    leaves(book, number)
    session = book.open(named(BOB))
    assert (session.num_offered, session.table.length, session.num_waiting) == (found, found, 0)


def test_the_last_row_of_a_prompt_is_computed_in_any_case(book: SessionBook) -> None:
    leaves(book, 40)
    session = book.open(named(BOB, num_prompt=32))
    assert session.num_offered == 16
    book.close(session)
    assert book.open(named(BOB, num_prompt=33)).num_offered == 32


@pytest.mark.parametrize("position", [0, 16, 32])
def test_the_first_row_says_where_a_session_begins(book: SessionBook, cache: KvCache, position: int) -> None:
    """Other stages may have less."""
    leaves(book, 40)
    session = book.open(named(BOB))
    book.push(session, rows(position, 40 - position))
    assert (session.table.length, session.num_waiting, session.num_sound) == (position, 40 - position, position)
    assert session.table.num_shared == position // 16
    cache.validate()


@pytest.mark.parametrize("position", [8, 33, 48])
def test_a_session_begins_at_no_other_row(book: SessionBook, position: int) -> None:
    leaves(book, 40)
    session = book.open(named(BOB))
    with pytest.raises(FrameError) as refused:
        book.push(session, rows(position, 1))
    assert refused.value.code is FrameFault.POSITION
    assert session.num_offered == 32


def test_a_session_that_has_begun_begins_nowhere_else(book: SessionBook) -> None:
    leaves(book, 40)
    session = book.open(named(BOB))
    book.push(session, rows(32, 1))
    for position in (0, 16, 32):
        with pytest.raises(FrameError):
            book.push(session, rows(position, 1))


def test_rows_that_were_not_seen_to_be_sound_are_left_to_nobody(book: SessionBook, cache: KvCache) -> None:
    leaves(book, 40, num_sound=20)
    assert book.open(named(BOB)).num_offered == 16
    cache.validate()


def test_a_session_that_fails_leaves_nothing(book: SessionBook) -> None:
    session = book.open(named(ALICE))
    book.push(session, rows(0, 40))
    compute(session, 40)
    session.num_sound = 40
    book.close(session)
    assert book.open(named(BOB)).num_offered == 0


def test_at_its_end_the_answers_rows_are_named_as_well(book: SessionBook) -> None:
    leaves(book, 48, end=EndSession(ALICE, 1, NAMES))
    assert book.open(named(BOB, num_prompt=50)).num_offered == 48


def test_an_end_of_a_later_epoch_names_only_what_the_session_was_opened_with(book: SessionBook) -> None:
    """The epoch that it names never came here: what was computed behind the prompt may be another answer's."""
    session = book.open(named(ALICE, names=NAMES[:2]))
    book.push(session, rows(0, 48))
    compute(session, 48)
    session.num_sound = 48
    book.end(EndSession(ALICE, 2, NAMES))
    assert book.open(named(BOB, num_prompt=50)).num_offered == 32


def test_another_name_is_another_beginning(book: SessionBook) -> None:
    """So is another tenant's, whose names for the same tokens are others."""
    leaves(book, 40)
    assert book.open(named(BOB, names=("f" * 32, *NAMES[1:]))).num_offered == 0


def test_a_session_opened_anew_finds_what_it_had_computed(book: SessionBook, cache: KvCache) -> None:
    session = book.open(named(ALICE))
    book.push(session, rows(0, 20))
    compute(session, 20)
    session.num_sound = 20
    again = book.open(named(ALICE, epoch=2))
    assert (again.num_offered, len(book)) == (16, 1)
    cache.validate()


def test_what_others_have_as_well_is_kept_whole_or_not_at_all(book: SessionBook) -> None:
    leaves(book, 40)
    session = book.open(named(BOB))
    book.push(session, rows(32, 4))
    compute(session, 4)
    with pytest.raises(NothingKeptError):
        book.open(structs.replace(named(BOB, epoch=2), num_kept_tokens=20, next_from=20))


def test_a_session_has_sent_what_the_one_before_it_sent_of_the_same_beginning(book: SessionBook) -> None:
    session = book.open(named(ALICE))
    book.push(session, rows(0, 40))
    book.sent.add(ALICE, 0, compute(session, 40).values)
    session.num_sound = 40
    book.end(EndSession(ALICE, 1))
    session = book.open(named(BOB))
    book.push(session, rows(16, 24))
    book.sent.add(BOB, 16, compute(session, 24).values)
    assert [row for _, part in book.sent.read(BOB, 0, 40, 99) for row in part[:, 0].tolist()] == list(range(40))


def test_where_the_rows_of_a_beginning_are_gone_a_session_cannot_send_them_again(book: SessionBook) -> None:
    """A next stage that lacks them makes everybody compute anew."""
    leaves(book, 40)
    session = book.open(named(BOB))
    book.push(session, rows(32, 8))
    book.sent.add(BOB, 32, compute(session, 8).values)
    assert book.sent.num_rows(BOB) == 0
    kept = structs.replace(named(BOB, epoch=2), num_kept_tokens=40, next_from=40)
    assert book.open(kept).table is session.table
    with pytest.raises(NothingKeptError):
        book.open(structs.replace(kept, epoch=3, next_from=0))
