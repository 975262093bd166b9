"""Slices as pairs of layer numbers: whole paths, and where the cheapest holes are."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.pieces import Piece, cheapest_path, holes_of, least_wait, on_paths

PIECES = st.sets(st.tuples(st.integers(0, 7), st.integers(1, 8)).map(lambda p: (p[0], min(8, p[0] + p[1]))), max_size=8)


def paths(pieces: set[Piece], at: int = 0) -> list[list[Piece]]:
    """All of them, one after the other."""
    if at == 8:
        return [[]]
    return [[piece, *rest] for piece in pieces if piece[0] == at for rest in paths(pieces, piece[1])]


@given(PIECES)
def test_whole_paths_are_those_that_trying_everything_finds(pieces: set[Piece]) -> None:
    assert on_paths(pieces, 8) == {piece for path in paths(pieces) for piece in path}


def test_the_cheapest_path_leaves_the_fewest_layers_missing() -> None:
    prices = {(0, 3): 0.0, (5, 8): 0.0, (2, 7): 0.0}
    assert cheapest_path(prices, [1.0] * 8, opening=0.1) == [(0, 3), (5, 8)]


def test_a_piece_that_costs_more_than_the_hole_is_left_out() -> None:
    assert cheapest_path({(0, 4): 0.0, (4, 8): 9.0}, [1.0] * 8, opening=0.5) == [(0, 4)]


def test_where_no_piece_helps_there_is_no_path() -> None:
    assert cheapest_path({}, [1.0] * 8, opening=0.5) is None


def test_a_whole_path_has_no_holes() -> None:
    path = cheapest_path({(0, 4): 0.0, (4, 8): 0.0, (1, 8): 0.0}, [1.0] * 8, opening=0.5)
    assert path == [(0, 4), (4, 8)]
    assert holes_of(path, 8) == []


@given(PIECES)
def test_pieces_and_holes_make_a_whole(pieces: set[Piece]) -> None:
    path = cheapest_path(dict.fromkeys(pieces, 0.0), [1.0] * 8, opening=0.01)
    if path is None:
        assert not pieces
        return
    assert set(path) <= pieces
    assert sorted({*path, *holes_of(path, 8)}) == paths({*path, *holes_of(path, 8)})[0]
    if on_paths(pieces, 8):
        assert holes_of(path, 8) == []


def test_a_path_is_there_when_its_last_piece_is_and_the_first_path_counts() -> None:
    waits = {(0, 4): 3.0, (4, 8): 9.0, (0, 5): 1.0, (5, 8): 7.0}
    assert least_wait(waits, 8) == 7.0
    assert least_wait({(0, 4): 3.0}, 8) == math.inf
