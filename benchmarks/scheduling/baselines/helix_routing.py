"""Helix's request scheduling (Mei et al., arXiv 2406.01566, section 5): a pipeline per request, weighted by flow.

The maximum flow through the ready nodes and the links between them gives every node weights for its successors; each
node goes through them by interleaved weighted round robin, and so does the coordinator for the first stage. Nodes whose
KV cache is too full are masked (section 5.2): here, those without room for the request. Links are pruned as in section
4.5: each node keeps the nearest `MAX_LINKS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scheduling.baselines.flow import Edge, max_flow, rows_per_token, token_rate
from benchmarks.scheduling.baselines.graph import SliceGraph
from benchmarks.scheduling.baselines.routers import GraphRouter
from coordinator.scheduler.cost import Speed, Workload, model_cost
from coordinator.scheduler.links import Floats
from coordinator.scheduler.state import Device, State

MAX_LINKS = 12
REFRESH_S = 60.0
"""How old the flow may grow while nothing joins or leaves."""
MAX_EXACT_LINKS = 2_048


@dataclass(slots=True)
class RoundRobin:
    """Interleaved weighted round robin: everybody's credit grows by its weight, the greatest credit is next."""

    weights: dict[int, float]
    credits: dict[int, float] = field(default_factory=dict)

    def order(self, allowed: Sequence[int]) -> list[int]:
        """Whom to try, first to last."""
        return sorted(allowed, key=lambda slot: (-self.credits.get(slot, 0.0) - self.weights[slot], slot))

    def take(self, slot: int, allowed: Sequence[int]) -> None:
        for other in allowed:
            self.credits[other] = self.credits.get(other, 0.0) + self.weights[other]
        self.credits[slot] -= sum(self.weights[other] for other in allowed)


@dataclass(slots=True)
class Flow:
    """Weights per node (-1: the coordinator), as of one version of the graph."""

    version: int
    since_s: float
    turns: Mapping[int, RoundRobin]


class HelixRouter(GraphRouter):
    """`workload` says how many prompt tokens come with each answer token."""

    def __init__(self, state: State, workload: Workload | None = None) -> None:
        workload = workload or Workload()
        self._workload = workload

        def seconds_per_token(speed: Speed, work: float, last: bool, device: Device) -> float:
            return 1.0 / token_rate(speed, work, workload)

        super().__init__(state, seconds_per_token)
        self._flows: dict[int, Flow] = {}

    def choose(self, graph: SliceGraph, costs: Floats, now_s: float) -> Sequence[int]:
        turns = self._flow(graph, now_s).turns
        dead: set[int] = set()
        chain: list[int] = []
        while not chain or graph.stop(chain[-1]) != graph.num_layers:
            at = chain[-1] if chain else -1
            turn = turns.get(at)
            allowed = [s for s in turn.weights if s not in dead and np.isfinite(costs[s])] if turn else []
            if allowed and turn:
                chain.append(turn.order(allowed)[0])
            elif chain:
                dead.add(chain.pop())  # masked further on: back, and another way
            else:
                return ()
        for at, slot in zip([-1, *chain], chain, strict=False):
            turns[at].take(slot, [s for s in turns[at].weights if s not in dead and np.isfinite(costs[s])])
        return chain

    def _flow(self, graph: SliceGraph, now_s: float) -> Flow:
        known = self._flows.get(id(graph))
        if known is None or known.version != graph.version or now_s - known.since_s >= REFRESH_S:
            before = known.turns if known is not None and known.version == graph.version else {}
            known = Flow(graph.version, now_s, self._turns(graph, now_s, before))
            self._flows[id(graph)] = known
        return known

    def _turns(self, graph: SliceGraph, now_s: float, before: Mapping[int, RoundRobin]) -> dict[int, RoundRobin]:
        weights: dict[int, dict[int, float]] = {}
        for (source, target), flow in flows_of(graph, self._link_rates(graph, now_s)).items():
            if flow > 0.0:
                weights.setdefault(source, {})[target] = flow
        return {at: RoundRobin(w, before[at].credits if at in before else {}) for at, w in weights.items()}

    def _link_rates(self, graph: SliceGraph, now_s: float) -> dict[tuple[int, int], float]:
        """Tokens per second over the links that are kept, by slots."""
        pairs = kept_links(graph, now_s)
        links = self.state.links
        row_bytes = self._row_bytes(graph)
        if row_bytes <= 0.0:
            return dict.fromkeys(pairs, np.inf)
        node_of = {slot: graph.device(slot).key.node_id for slot in graph.slots()}
        if len(pairs) <= MAX_EXACT_LINKS:
            return {(a, b): links.bytes_per_s(node_of[a], node_of[b]) / row_bytes for a, b in pairs}
        slots = list(node_of)
        rows = np.array([links.row(node_of[slot]) for slot in slots], dtype=np.intp)
        uplinks = dict(zip(slots, links.uploads(rows).tolist(), strict=True))
        return {(a, b): np.inf if node_of[a] == node_of[b] else uplinks[a] / row_bytes for a, b in pairs}

    def _row_bytes(self, graph: SliceGraph) -> float:
        """Bytes over a link for each token generated."""
        device = next((graph.device(slot) for slot in graph.slots()), None)
        if device is None or device.model is None:
            return 0.0
        model = model_cost(self.state.models[device.model], device.spec.variant)
        return model.hidden_bytes * rows_per_token(self._workload)


def kept_links(graph: SliceGraph, now_s: float) -> list[tuple[int, int]]:
    """Pairs of slots that follow each other: of each the nearest `MAX_LINKS` on either side."""
    kept: set[tuple[int, int]] = set()
    for boundary in {graph.start(slot) for slot in graph.slots()} & {graph.stop(slot) for slot in graph.slots()}:
        _, ins, outs, delays = graph.hops(boundary, now_s)
        onward = np.argsort(delays, axis=1, kind="stable")[:, :MAX_LINKS]
        backward = np.argsort(delays, axis=0, kind="stable")[:MAX_LINKS]
        kept.update((int(ins[a]), int(outs[b])) for a in range(len(ins)) for b in onward[a])
        kept.update((int(ins[a]), int(outs[b])) for b in range(len(outs)) for a in backward[:, b])
    return sorted(kept)


def flows_of(graph: SliceGraph, link_rates: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """Maximum flow over slots; -1 is the coordinator at either end. A node is an edge with its throughput."""
    slots = sorted(graph.slots())
    index = {slot: 2 * at for at, slot in enumerate(slots)}
    source, sink = 2 * len(slots), 2 * len(slots) + 1
    rates = 1.0 / graph.costs()
    edges: list[Edge] = [(index[slot], index[slot] + 1, float(rates[slot])) for slot in slots]
    named: list[tuple[int, int]] = []
    for slot in slots:
        if graph.start(slot) == 0:
            named.append((-1, slot))
            edges.append((source, index[slot], float(rates[slot])))
        if graph.stop(slot) == graph.num_layers:
            named.append((slot, -1))
            edges.append((index[slot] + 1, sink, float(rates[slot])))
    for (a, b), rate in link_rates.items():
        named.append((a, b))
        edges.append((index[a] + 1, index[b], min(rate, float(rates[a]), float(rates[b]))))
    _, flows = max_flow(sink + 1, edges, source, sink)
    return dict(zip(named, flows[len(slots) :], strict=True))
