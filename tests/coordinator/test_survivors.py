"""Which stages of a lost chain hold what, chain after chain: compared with a stage-by-stage account of rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scheduler.commands import ChainStage
from coordinator.survivors import Survivors
from protocol.values import LayerRange
from tests.fakes import pool_facts as facts

KEEPERS = frozenset(facts.key(number) for number in range(1, 9))


def stage(number: int, layer: int, generation: int = 1) -> ChainStage:
    return ChainStage(facts.key(number), generation, LayerRange(layer, layer + 1))


CHAIN = (stage(1, 0), stage(2, 1), stage(3, 2))


def proven(position: int = 10, chain: tuple[ChainStage, ...] = CHAIN, keepers: frozenset = KEEPERS) -> Survivors:  # type: ignore[type-arg]
    """A chain through which a token at this position has been."""
    survivors = Survivors()
    assert survivors.start(chain, keepers) == (0,) * len(chain)
    survivors.committed(position)
    return survivors


def test_without_a_token_nothing_is_held() -> None:
    survivors = Survivors()
    survivors.start(CHAIN, KEEPERS)
    assert survivors.leave(CHAIN, ()) == [*CHAIN]
    assert survivors.start(CHAIN, KEEPERS) == (0, 0, 0)


def test_after_a_token_every_stage_holds_the_rows_before_it() -> None:
    survivors = proven()
    assert survivors.leave(CHAIN, ()) == []
    assert survivors.open == CHAIN
    assert survivors.start(CHAIN, KEEPERS) == (10, 10, 10)
    assert survivors.open == ()


def test_a_stage_that_cannot_keep_does_not_and_neither_does_the_one_that_it_feeds() -> None:
    """It would not know from which row on to send."""
    keepers = KEEPERS - {facts.key(1)}
    survivors = proven(keepers=keepers)
    survivors.leave(CHAIN, ())
    assert survivors.start(CHAIN, keepers) == (0, 0, 10)


def test_a_stage_that_holds_rows_keeps_none_behind_a_new_one_that_cannot() -> None:
    survivors = proven()
    survivors.leave(CHAIN, ())
    assert survivors.start((stage(9, 0), *CHAIN[1:]), KEEPERS) == (0, 0, 10)


def test_nodes_without_anything_worth_keeping_are_named_and_those_that_are_gone_too() -> None:
    survivors = proven()
    survivors.forget({CHAIN[0]})
    survivors.lost({facts.key(2)})
    assert survivors.leave(CHAIN, {facts.key(2)}) == [CHAIN[0], CHAIN[1]]
    assert survivors.open == (CHAIN[2],)


def test_a_survivor_that_is_lost_later_is_neither_held_nor_open() -> None:
    survivors = proven()
    survivors.leave(CHAIN, ())
    survivors.lost({facts.key(3)})
    assert survivors.open == CHAIN[:2]
    assert survivors.start(CHAIN, KEEPERS) == (10, 10, 0)


@pytest.mark.parametrize("num_keepers", [8, 4])
@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["token", "lose", "swap", "forget"]), st.integers(0, 2)), max_size=40))
def test_no_stage_is_ever_asked_to_keep_more_than_it_has(num_keepers: int, steps: list[tuple[str, int]]) -> None:
    """The account: rows that each stage has computed for sure. A stage that is opened with nothing starts anew."""
    keepers = frozenset(facts.key(number) for number in range(1, num_keepers + 1))
    rows: dict[ChainStage, int] = {}
    survivors, chain, position, number = Survivors(), CHAIN, 3, 3

    def start() -> None:
        for place, num_kept in zip(chain, survivors.start(chain, keepers), strict=True):
            assert num_kept <= rows.get(place, 0)
            assert not num_kept or (place.device in keepers and num_kept == position - 1)
            rows[place] = num_kept

    start()
    for what, which in steps:
        if what == "token":
            survivors.committed(position)
            rows |= dict.fromkeys(chain, position)
            position += 1
        elif what == "forget":
            survivors.forget({chain[which]})
            rows[chain[which]] = 0
        else:
            gone = {chain[which].device} if what == "lose" else set()
            survivors.lost(gone)
            closed = survivors.leave(chain, gone)
            rows |= dict.fromkeys(closed, 0)
            if what == "lose":
                number = number % 8 + 1
                while any(place.device == facts.key(number) for place in chain):
                    number = number % 8 + 1
                chain = tuple(stage(number, at, position) if at == which else s for at, s in enumerate(chain))
            start()
        survivors.validate()
