"""Other systems' schedulers, implemented from their papers as policies of ours, to be run in the same simulator.

All see the same measurements (`Offer.speed`, the link map), reserve KV room alike and serve over the same aligned
slices. What each adapts to that, and what its paper leaves open, is said where it is implemented. None of them uses the
planner's own re-planning (`replans`): they move devices by their own rules, in `adapt`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.scheduling.baselines import grouping, parallax
from benchmarks.scheduling.baselines import helix as helix_placement
from benchmarks.scheduling.baselines.capacity import FLOOR, CapacityRule
from benchmarks.scheduling.baselines.chance import RandomAllocator
from benchmarks.scheduling.baselines.grouping import GroupAllocator
from benchmarks.scheduling.baselines.helix import HelixAllocator
from benchmarks.scheduling.baselines.helix_routing import HelixRouter
from benchmarks.scheduling.baselines.parallax import ParallaxAllocator
from benchmarks.scheduling.baselines.petals import PetalsAllocator
from benchmarks.scheduling.baselines.routers import (
    FewestOutstandingRouter,
    ParallaxRouter,
    PetalsRouter,
    RandomRouter,
    RoundRobinRouter,
)
from coordinator.scheduler.policy import Policy

__all__ = ["FLOOR", "OWN_RULES", "POLICIES", "CapacityRule", "combine", "with_rule"]


def petals() -> Policy:
    return Policy("petals", PetalsAllocator(), PetalsRouter, replans=False)


def parallax_greedy_dp() -> Policy:
    return Policy("parallax-greedy-dp", ParallaxAllocator("greedy"), ParallaxRouter, replans=False)


def parallax_dp_dp() -> Policy:
    return Policy("parallax-dp-dp", ParallaxAllocator("dp"), ParallaxRouter, replans=False)


def parallax_greedy_rr() -> Policy:
    return Policy("parallax-greedy-rr", ParallaxAllocator("greedy", joins="standby"), RoundRobinRouter, replans=False)


def parallax_dp_rr() -> Policy:
    """As released: the default of its code."""
    return Policy("parallax-dp-rr", ParallaxAllocator("dp", joins="standby"), RoundRobinRouter, replans=False)


def helix() -> Policy:
    return Policy("helix", HelixAllocator(), HelixRouter, replans=False)


def hexgen() -> Policy:
    return Policy("hexgen", GroupAllocator(), FewestOutstandingRouter, replans=False)


def chance() -> Policy:
    return Policy("random", RandomAllocator(), RandomRouter, replans=False)


POLICIES: dict[str, Callable[[], Policy]] = {
    "petals": petals,
    "parallax-greedy-dp": parallax_greedy_dp,
    "parallax-dp-dp": parallax_dp_dp,
    "parallax-greedy-rr": parallax_greedy_rr,
    "parallax-dp-rr": parallax_dp_rr,
    "helix": helix,
    "hexgen": hexgen,
    "random": chance,
}
"""By name. Each call makes a new one: routers keep what they have chosen."""


OWN_RULES: dict[str, CapacityRule] = {
    "petals": PetalsAllocator().rule,
    "parallax-greedy-dp": parallax.OWN_SHARE,
    "parallax-dp-dp": parallax.OWN_SHARE,
    "parallax-greedy-rr": parallax.OWN_SHARE,
    "parallax-dp-rr": parallax.OWN_SHARE,
    "helix": helix_placement.OWN_SHARE,
    "hexgen": grouping.OWN_SHARE,
}
"""How much each system itself keeps free for KV; where `POLICIES` has another rule, that one served it better."""


def with_rule(policy: Policy, rule: CapacityRule) -> Policy:
    """The same baseline with another capacity rule: `FLOOR`, or its own of `OWN_RULES`."""
    allocator = policy.allocator
    if not isinstance(
        allocator, PetalsAllocator | ParallaxAllocator | HelixAllocator | GroupAllocator | RandomAllocator
    ):
        raise TypeError(f"{policy.name} has no capacity rule")
    return replace(policy, allocator=replace(allocator, rule=rule))


def combine(name: str, allocator_of: Policy, router_of: Policy) -> Policy:
    """For ablations: the first phase of one with the second phase of another."""
    return Policy(name, allocator_of.allocator, router_of.make_router, replans=allocator_of.replans)
