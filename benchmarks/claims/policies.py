"""Policies by name: ours, other systems', and the first phase of one with the second of another."""

from __future__ import annotations

from benchmarks.scheduling.baselines import POLICIES, combine
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.scheduler import our_policy

OURS = "ours"
BASELINES = tuple(POLICIES)
DECENTRALISED = ("petals", "parallax-greedy-dp", "parallax-dp-rr", "helix", "hexgen")
"""Those whose papers are about nodes of unequal owners."""


def policy_named(name: str) -> Policy:
    """`a+b` is the first phase of a with the second phase of b. Raises KeyError for a name that is none."""
    first, _, second = name.partition("+")
    return combine(name, _policy(first), _policy(second)) if second else _policy(first)


def _policy(name: str) -> Policy:
    return our_policy(SchedulerConfig()) if name == OURS else POLICIES[name]()
