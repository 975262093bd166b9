"""Phase 2 of the other systems. None has a model of queues; all reserve KV room, as the pool asks of everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scheduling.baselines.chance import SEED
from benchmarks.scheduling.baselines.graph import SliceCost, SliceGraph, SliceGraphs, idle_step_s
from coordinator.scheduler.cost import Speed
from coordinator.scheduler.links import Floats
from coordinator.scheduler.policy import Route, RouteRequest
from coordinator.scheduler.state import Device, DeviceKey, State
from protocol.values import SessionId, Variant


class GraphRouter:
    """What all of them share: the index, and the rules of the pool."""

    def __init__(self, state: State, cost: SliceCost = idle_step_s) -> None:
        self.state = state
        self.graphs = SliceGraphs(state, cost)

    def changed(self, device: Device) -> None:
        self.graphs.changed(device)

    def gone(self, device: Device) -> None:
        self.graphs.gone(device.key)

    def finished(self, session_id: SessionId, devices: Sequence[DeviceKey], now_s: float) -> None:
        """Nothing to do: the devices' own counts, which the scheduler keeps, are what is looked at."""

    def route(self, request: RouteRequest, variant: Variant, now_s: float) -> Route | None:
        graph = self.graphs.get(request.manifest_hash, variant)
        if graph is None or not len(graph):
            return None
        chain = self.choose(graph, graph.usable(request, self.state), now_s)
        return Route(graph.devices(chain)) if chain else None

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        """Slots of a whole chain, none of which has an infinite cost; empty if there is none."""
        raise NotImplementedError


class PetalsRouter(GraphRouter):
    """The released client's `min_latency` mode (arXiv 2312.08361, section 3.1 and appendix; Dijkstra over servers).

    An edge costs half the round trip and a fixed overhead, a block 1 / inference rate as the server measured it alone:
    no load. Servers without cache for the request are not used here (the client adds 10 s to them). The client's
    overhead of 18 ms a hop was measured on its own wire format; on this runtime's it is nothing, which suits it
    better, so that 0 is the default. There is no client in the chain: the tail hands its token to the head.

    Every Petals client pings servers itself, so that clients in different places take different chains; to one router
    they would all be in one place. `spread_clients`: each request comes from beside a ready node drawn by lot, and the
    delays from there to the head and from the tail back are counted as its client would count them."""

    def __init__(self, state: State, overhead_s: float = 0.0, spread_clients: bool = True, seed: int = SEED) -> None:
        def cost(speed: Speed, work: float, last: bool, device: Device) -> float:
            return overhead_s + idle_step_s(speed, work, last, device)

        super().__init__(state, cost)
        self._lot = np.random.default_rng(seed) if spread_clients else None

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        if self._lot is not None:
            slots = list(graph.slots())
            client = graph.device(slots[int(self._lot.integers(len(slots)))]).key.node_id
            for boundary in (0, graph.num_layers):
                near, delays = graph.delays_from(client, boundary, ending=boundary > 0)
                costs[near] += delays
        return graph.shortest(costs, now_s)


class ParallaxRouter(GraphRouter):
    """Parallax's phase 2 (arXiv 2509.26182, section 3): dynamic programming over the DAG of slices, per request.

    A slice costs its layers' profiled latency, which reflects how many requests share it; an edge costs the delay. The
    latency of a chosen GPU is raised at once: by the rows it has now, and by `raise_by` of itself for each of them (the
    paper gives no figure; of 0 to 1 this served it best). No queueing, no prompt length, no bandwidth, no hop back to
    the head."""

    def __init__(self, state: State, raise_by: float = 0.03) -> None:
        def cost(speed: Speed, work: float, last: bool, device: Device) -> float:
            num_requests = device.num_requests
            return speed.step_time_s(work, 1 + num_requests, last=last) * (1 + raise_by * num_requests)

        super().__init__(state, cost)

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        return graph.shortest(costs, now_s)


@dataclass(slots=True)
class Pipelines:
    """Fixed, disjoint pipelines of one graph."""

    chains: list[list[DeviceKey]]
    version: int = -1
    turn: int = 0


class FixedRouter(GraphRouter):
    """Fixed pipelines that share no device: the cheapest chain, then the cheapest of what is left, and so on.

    That is how Parallax's released round robin finds them (by enumeration there, by shortest paths here). A pipeline
    that loses a device is gone; whoever is in none forms new ones."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._pipelines: dict[int, Pipelines] = {}

    def pipelines(self, graph: SliceGraph, now_s: float) -> Pipelines:
        """As they are now."""
        known = self._pipelines.setdefault(id(graph), Pipelines([]))
        if known.version != graph.version:
            known.chains = [chain for chain in known.chains if _is_whole(graph, chain)]
            known.chains += _disjoint(graph, known.chains, now_s)
            known.version = graph.version
        return known

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        pipelines = self.pipelines(graph, now_s)
        chains = [[slot for key in chain if (slot := graph.slot(key)) is not None] for chain in pipelines.chains]
        return self.pick(graph, [chain if np.isfinite(costs[chain]).all() else [] for chain in chains], pipelines)

    def pick(self, graph: SliceGraph, chains: Sequence[Sequence[int]], pipelines: Pipelines) -> Sequence[int]:
        """One of the chains; those that cannot take the request are empty."""
        raise NotImplementedError


class RoundRobinRouter(FixedRouter):
    """Parallax as released (`RoundRobinPipelineRouting`, the default): each pipeline in turn, full ones left out."""

    def pick(self, graph: SliceGraph, chains: Sequence[Sequence[int]], pipelines: Pipelines) -> Sequence[int]:
        for step in range(len(chains)):
            index = (pipelines.turn + step) % len(chains)
            if chains[index]:
                pipelines.turn = index + 1
                return chains[index]
        return ()


class FewestOutstandingRouter(FixedRouter):
    """HexGen's coordinator: the group with the fewest outstanding requests; ties go to the first."""

    def pick(self, graph: SliceGraph, chains: Sequence[Sequence[int]], pipelines: Pipelines) -> Sequence[int]:
        open_chains = [chain for chain in chains if chain]
        return min(open_chains, key=lambda c: max(d.num_requests for d in graph.devices(c)), default=())


class RandomRouter(GraphRouter):
    """From stage to stage by lot, among those from which the end can be reached."""

    def __init__(self, state: State, seed: int = SEED) -> None:
        super().__init__(state)
        self._lot = np.random.default_rng(seed)

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        usable = [slot for slot in graph.slots() if np.isfinite(costs[slot])]
        options: dict[int, list[int]] = {}
        reaching = {graph.num_layers}
        for slot in sorted(usable, key=lambda slot: (-graph.stop(slot), slot)):
            if graph.stop(slot) in reaching:
                start = graph.start(slot)
                reaching.add(start)
                options.setdefault(start, []).append(slot)
        chain: list[int] = []
        at = 0
        while at != graph.num_layers:
            if at not in options:
                return ()
            chain.append(options[at][int(self._lot.integers(len(options[at])))])
            at = graph.stop(chain[-1])
        return chain


def _is_whole(graph: SliceGraph, chain: Sequence[DeviceKey]) -> bool:
    """Whether its devices are all there, and still follow each other."""
    at = 0
    for key in chain:
        slot = graph.slot(key)
        if slot is None or graph.start(slot) != at:
            return False
        at = graph.stop(slot)
    return at == graph.num_layers


def _disjoint(graph: SliceGraph, taken: Sequence[Sequence[DeviceKey]], now_s: float) -> list[list[DeviceKey]]:
    costs = graph.costs()
    costs[[slot for chain in taken for key in chain if (slot := graph.slot(key)) is not None]] = np.inf
    chains: list[list[DeviceKey]] = []
    while slots := graph.shortest(costs, now_s):
        chains.append([graph.device(slot).key for slot in slots])
        costs[slots] = np.inf
    return chains
