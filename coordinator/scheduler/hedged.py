"""Second chains of running requests: how many there may be at a time, and what they take of their devices."""

from __future__ import annotations

from collections.abc import Callable, Collection

from coordinator.scheduler.policy import Route
from coordinator.scheduler.state import DeviceKey, Running, State
from protocol.values import SessionId

HEDGE_SHARE = 0.1
"""Of the running requests, so many may have a second chain at a time (at least one): a pool that is slow because it is
full must not be made fuller by that (J. Dean, L. A. Barroso, "The Tail at Scale", CACM 2013). Those that have to move
count, but are not held back: they compute their log elsewhere in any case."""


class HedgedRoom:
    """Keeps `state.hedges`. `count(running, sign)` counts what a chain takes at all of its devices."""

    def __init__(self, state: State, count: Callable[[Running, int], None]) -> None:
        self._state = state
        self._count = count

    @property
    def is_spent(self) -> bool:
        """Whether there are as many second chains as there may be."""
        return len(self._state.hedges) >= max(1, int(HEDGE_SHARE * len(self._state.running)))

    def own_nodes(self, running: Running) -> frozenset[DeviceKey]:
        """All devices of the nodes that the request runs on: its second chain shares none of them."""
        nodes = {key.node_id for key in running.devices}
        return frozenset(device.key for node_id in nodes for device in self._state.devices.of_node(node_id))

    def is_worth_it(self, route: Route | None, ttft_limit_s: float, tpot_limit_s: float) -> bool:
        return route is not None and route.ttft_s <= ttft_limit_s and route.tpot_s <= tpot_limit_s

    def start(self, session_id: SessionId, hedge: Running) -> None:
        """Room and load of both chains are counted while there are two."""
        self._state.hedges[session_id] = hedge
        self._count(hedge, 1)

    def take(self, session_id: SessionId) -> Running | None:
        """It is a second chain no more."""
        hedge = self._state.hedges.pop(session_id, None)
        if hedge is not None:
            self._count(hedge, -1)
        return hedge

    def lost(self, devices: Collection[DeviceKey]) -> None:
        """These devices are gone, or are to do something else; call it while they are still listed."""
        for session_id, hedge in list(self._state.hedges.items()):
            if any(key in devices for key in hedge.devices):
                self.take(session_id)
