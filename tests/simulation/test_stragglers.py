"""What second chains are for: a user hardly notices a node that becomes slow, or leaves."""

from __future__ import annotations

import pytest

from tests.simulation.stragglers import Outcome, Trouble, play

pytestmark = pytest.mark.allowed_logs("")
SEED = 3


def both(trouble: Trouble) -> tuple[Outcome, Outcome]:
    """Without second chains, and with them."""
    without, with_hedges = play(SEED, trouble, with_hedges=False), play(SEED, trouble, with_hedges=True)
    assert not without.wrong and not with_hedges.wrong
    return without, with_hedges


def test_a_node_that_leaves_softly_is_hardly_noticed() -> None:
    without, with_hedges = both(Trouble.LEAVE)
    assert with_hedges.num_hedges == 1
    assert with_hedges.longest_gap_s < without.longest_gap_s / 2


def test_an_answer_on_a_node_that_became_slow_is_done_sooner_and_never_pauses() -> None:
    without, with_hedges = both(Trouble.SLOW)
    assert with_hedges.num_hedges == 1
    assert with_hedges.took_s < without.took_s
    assert with_hedges.longest_gap_s <= without.longest_gap_s * 1.05


def test_without_trouble_nobody_has_a_second_chain() -> None:
    without, with_hedges = both(Trouble.NONE)
    assert with_hedges.num_hedges == 0
    assert with_hedges == without
