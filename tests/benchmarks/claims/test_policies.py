from __future__ import annotations

import pytest

from benchmarks.claims.policies import BASELINES, DECENTRALISED, OURS, policy_named


@pytest.mark.parametrize("name", [*BASELINES, "petals+helix"])
def test_policies_are_made_by_name(name: str) -> None:
    assert policy_named(name).name == name


def test_phases_can_be_mixed_with_ours() -> None:
    ours, petals = policy_named(OURS), policy_named("petals")
    mixed = policy_named(f"{OURS}+petals")
    assert type(mixed.allocator) is type(ours.allocator)
    assert mixed.make_router is petals.make_router


def test_an_unknown_name_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        policy_named("nobody")


def test_those_that_are_compared_with_exist() -> None:
    assert set(DECENTRALISED) <= set(BASELINES)
