"""What can go wrong in a simulation.

ScenarioError           a scenario cannot be read or makes no sense: one sentence for people
ImpossibleCommand       the scheduler ordered what no node could do: a defect of the policy, never of the scenario
"""

from __future__ import annotations

from coordinator.errors import PoolError


class ScenarioError(PoolError):
    """A scenario that cannot be read or makes no sense. The sentence names file, section and setting."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_scenario", message)


class ImpossibleCommand(PoolError):  # noqa: N818 - reads as what happened
    """A chain with a hole, over a slice that is not held, or with more KV than there is: something served wrongly."""

    def __init__(self, message: str) -> None:
        super().__init__("impossible_command", message)
