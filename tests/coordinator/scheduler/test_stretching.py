"""A hole without devices for it: neighbours take some layers more, with as few downloads as possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.filling_holes import HoleFiller
from coordinator.scheduler.pieces import Piece, holes_of, on_paths
from coordinator.scheduler.problems import fit_of
from coordinator.scheduler.stretching import stretch
from tests.fakes.problem_facts import offer, problem


def stretched(pieces: list[Piece], rooms: list[int], free_rooms: list[int]) -> dict[int, Piece] | None:
    holders = [offer(n, room, piece) for n, (piece, room) in enumerate(zip(pieces, rooms, strict=True), start=1)]
    free = [offer(n, room) for n, room in enumerate(free_rooms, start=len(holders) + 1)]
    pool = problem(*holders, *free)
    fit = fit_of(pool)
    groups = [(piece, [i]) for i, piece in enumerate(pieces)]
    indices = range(len(holders), len(holders) + len(free))
    return stretch(fit, HoleFiller(pool, fit), groups, holes_of(pieces, 24), indices)


def test_the_neighbour_with_room_takes_the_hole() -> None:
    assert stretched([(0, 10), (12, 24)], [10, 14], []) == {1: (10, 24)}


def test_a_free_device_takes_what_it_can_and_neighbours_the_rest() -> None:
    assert stretched([(0, 10), (14, 24)], [11, 10], [3]) == {0: (0, 11), 2: (11, 14)}


def test_a_full_neighbour_hands_layers_on() -> None:
    assert stretched([(0, 8), (8, 16), (18, 24)], [12, 8, 6], []) == {0: (0, 10), 1: (10, 18)}


def test_where_nobody_has_room_it_cannot_be_done() -> None:
    assert stretched([(0, 10), (12, 24)], [10, 12], [1]) is None


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5),
    st.lists(st.integers(0, 5), max_size=2),
)
def test_a_stretched_lane_is_whole_and_everybody_has_the_room(
    shape: list[tuple[int, int, int]], free_rooms: list[int]
) -> None:
    """Pieces of some length, each behind a gap, with some room to spare."""
    pieces: list[Piece] = []
    at = 0
    for length, gap, _ in shape:
        if at + gap + length <= 24:
            pieces.append((at + gap, at + gap + length))
            at += gap + length
    if not pieces:
        return
    rooms = [stop - start + extra for (start, stop), (_, _, extra) in zip(pieces, shape, strict=False)]
    changes = stretched(pieces, rooms, free_rooms)
    if changes is not None:
        after = dict(enumerate(pieces)) | changes
        assert on_paths(set(after.values()), 24) == set(after.values())
        everybody = [*rooms, *free_rooms]
        assert all(stop - start <= everybody[i] for i, (start, stop) in after.items())
