"""Which devices have seen which prompts' beginnings."""

from __future__ import annotations

from coordinator.scheduler.prefixes import MAX_BLOCKS, Prefixes
from coordinator.scheduler.state import Device
from tests.fakes import pool_facts as facts


def device(number: int, *, caches: bool = True) -> Device:
    return Device(facts.key(number), facts.spec(), generation=1, has_prefix_cache=caches)


def test_devices_with_a_cache_own_what_they_have_seen() -> None:
    prefixes = Prefixes()
    prefixes.remember(device(1), [7, 8])
    prefixes.remember(device(2), [7])
    prefixes.remember(device(3, caches=False), [7])
    assert prefixes.owners(7) == [facts.key(1), facts.key(2)]
    assert prefixes.owners(8) == [facts.key(1)]
    assert prefixes.owners(9) == []


def test_what_was_seen_longest_ago_is_forgotten_first() -> None:
    prefixes, owner = Prefixes(), device(1)
    prefixes.remember(owner, range(MAX_BLOCKS))
    prefixes.remember(owner, [0, -1])
    assert prefixes.owners(0) == [owner.key]
    assert prefixes.owners(1) == []
    assert prefixes.owners(2) == [owner.key]


def test_another_generation_has_seen_nothing_of_the_last_one() -> None:
    prefixes, owner = Prefixes(), device(1)
    prefixes.remember(owner, [7])
    assert prefixes.is_fresh(owner)
    owner.generation += 1
    assert not prefixes.is_fresh(owner)
    prefixes.remember(owner, [8])
    assert prefixes.is_fresh(owner)
    assert (prefixes.owners(7), prefixes.owners(8)) == ([], [owner.key])


def test_a_device_that_is_forgotten_owns_nothing() -> None:
    prefixes, owner = Prefixes(), device(1)
    prefixes.forget(owner.key)
    prefixes.remember(owner, [7])
    prefixes.forget(owner.key)
    assert prefixes.owners(7) == []
    assert not prefixes.is_fresh(owner)
