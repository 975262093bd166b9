"""What is left of a session's chain when it is lost: which stages hold how much of its KV, and what the next chain may
keep of that. Pure.

A token that was committed has been through all stages, so each of them has computed all rows before it. A stage that
is in the next chain again keeps these rows, if its node knows how; of the first stage after it that keeps less, the
rows come from what the stage has kept of its own outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey

NOTHING_KEPT = "nothing_kept"
LINK_LOST = "link_lost"
HARMLESS_TO_KV = frozenset({LINK_LOST, "rows_lost"})
"""Codes of SessionBroken that say nothing about what the stage has computed before."""


@dataclass(slots=True)
class Survivors:
    """`holders` have computed the first `num_rows` rows of the log. `open` are stages of a lost chain whose nodes have
    not been told to close the session; some of them may be no holders, if their node has another stage that is one."""

    num_rows: int = 0
    holders: frozenset[ChainStage] = frozenset()
    open: tuple[ChainStage, ...] = ()
    _able: frozenset[ChainStage] = frozenset()
    """Stages of the chain of now that will be holders from its first committed token on."""

    def start(self, chain: tuple[ChainStage, ...], keepers: frozenset[DeviceKey]) -> tuple[int, ...]:
        """The session runs over this chain from now on: how many rows each stage keeps.

        Who does not know how to keep rows does not know how to send only a part of them either, so that the stage
        after it computes everything."""
        self._able = frozenset(stage for stage in chain if stage.device in keepers)
        fed = (True, *(stage in self._able for stage in chain[:-1]))
        keeps = [
            stage in self.holders and stage in self._able and is_fed for stage, is_fed in zip(chain, fed, strict=True)
        ]
        self.holders = frozenset(stage for stage, does in zip(chain, keeps, strict=True) if does)
        self.open = ()
        return tuple(self.num_rows if does else 0 for does in keeps)

    def committed(self, position: int) -> None:
        """A token at this position has been through the whole chain."""
        self.num_rows, self.holders = position, self._able

    def forget(self, stages: Collection[ChainStage]) -> None:
        """These have nothing worth keeping."""
        self.holders = self.holders.difference(stages)

    def lost(self, devices: Collection[DeviceKey]) -> None:
        """These devices are gone."""
        self.holders = frozenset(stage for stage in self.holders if stage.device not in devices)
        self.open = tuple(stage for stage in self.open if stage.device not in devices)

    def leave(self, chain: tuple[ChainStage, ...], gone: Collection[DeviceKey]) -> list[ChainStage]:
        """The chain is lost: the stages that nobody needs any more."""
        nodes = {stage.device.node_id for stage in self.holders}
        self.open = tuple(s for s in chain if s.device.node_id in nodes and s.device not in gone)
        self._able = frozenset()
        return [stage for stage in chain if stage.device.node_id not in nodes]

    def validate(self) -> None:
        """What must hold between events (AssertionError)."""
        assert not self.holders or self.num_rows > 0, self
        assert self.holders <= {*self.open, *self._able}, self
