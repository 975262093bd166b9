"""How many may wait whose node is not known yet."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from coordinator.doorstep import MAX_IN_VAIN, Doorstep


def test_an_address_has_room_for_so_many_and_others_are_not_held_up() -> None:
    doorstep = Doorstep(max_visitors=10, max_per_address=2)
    with doorstep.visit("10.0.0.1"):
        assert doorstep.has_room("10.0.0.1", 0.0)
        with doorstep.visit("10.0.0.1"):
            assert not doorstep.has_room("10.0.0.1", 0.0)
            assert doorstep.has_room("10.0.0.2", 0.0)
        assert doorstep.has_room("10.0.0.1", 0.0)


def test_all_together_have_room_for_so_many() -> None:
    doorstep = Doorstep(max_visitors=3, max_per_address=2)
    with ExitStack() as visits:
        for number in range(3):
            visits.enter_context(doorstep.visit(f"10.0.0.{number}"))
        assert not doorstep.has_room("10.0.0.9", 0.0)
    assert doorstep.has_room("10.0.0.9", 0.0)


def test_an_ipv6_network_counts_as_one_address() -> None:
    doorstep = Doorstep(max_per_address=1)
    with doorstep.visit("2001:db8::1"):
        assert not doorstep.has_room("2001:db8::2", 0.0)
        assert doorstep.has_room("2001:db8:0:1::1", 0.0)


def test_an_address_that_is_not_known_counts_only_among_all() -> None:
    doorstep = Doorstep(max_visitors=3, max_per_address=1)
    with doorstep.visit(""), doorstep.visit(""):
        assert doorstep.has_room("", 0.0)
        with doorstep.visit(""):
            assert not doorstep.has_room("", 0.0)


def test_nobody_is_remembered_who_is_gone_however_the_visit_ended() -> None:
    doorstep = Doorstep()
    with pytest.raises(RuntimeError), doorstep.visit("10.0.0.1"):
        raise RuntimeError
    assert len(doorstep) == 0
    assert not doorstep._visitors, "an address that will not come again must not take memory"


def test_an_address_that_comes_in_vain_again_and_again_waits_and_others_do_not() -> None:
    doorstep = Doorstep()
    for _ in range(MAX_IN_VAIN):
        assert doorstep.has_room("10.0.0.1", 100.0)
        doorstep.turned_away("10.0.0.1", 100.0)
    assert not doorstep.has_room("10.0.0.1", 101.9)
    assert doorstep.has_room("10.0.0.2", 101.9)
    assert doorstep.has_room("10.0.0.1", 102.1)


def test_nobody_is_counted_whose_address_is_not_known() -> None:
    doorstep = Doorstep()
    for _ in range(2 * MAX_IN_VAIN):
        doorstep.turned_away("", 0.0)
    assert doorstep.has_room("", 0.0)
