"""Which pairs use the relay for a while."""

from __future__ import annotations

import pytest

from coordinator import bad_links as bad_links_module
from coordinator.bad_links import BAD_FOR_S, BadLinks
from tests.fakes import pool_facts as facts

PAIR = facts.node_id(1), facts.node_id(2)


def test_a_link_is_bad_in_the_direction_that_lost_rows_and_not_for_ever() -> None:
    links = BadLinks()
    assert not links.is_bad(PAIR, 0.0)
    links.add(PAIR, 10.0)
    assert links.is_bad(PAIR, 10.0 + BAD_FOR_S - 0.1)
    assert not links.is_bad((PAIR[1], PAIR[0]), 11.0)
    assert not links.is_bad(PAIR, 10.0 + BAD_FOR_S)


def test_one_that_is_found_again_is_bad_for_longer() -> None:
    links = BadLinks()
    links.add(PAIR, 0.0)
    links.add(PAIR, BAD_FOR_S / 2)
    assert links.is_bad(PAIR, BAD_FOR_S)


def test_not_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_links_module, "MAX_PAIRS", 3)
    links = BadLinks()
    pairs = [(facts.node_id(1), facts.node_id(number)) for number in range(2, 8)]
    for pair in pairs:
        links.add(pair, 0.0)
    assert [links.is_bad(pair, 1.0) for pair in pairs] == [False] * 3 + [True] * 3
