"""Maximum flow with real capacities, on SciPy's Dinic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from benchmarks.scheduling.baselines.capacity import Span
from coordinator.scheduler.cost import Speed, Workload
from coordinator.scheduler.links import Floats
from coordinator.scheduler.plan import Problem

RESOLUTION = 1e8
"""SciPy takes 32-bit integers: the largest capacity becomes this many units."""
BATCH = 16
"""Decode rows in a step at which a node's throughput is taken."""

Edge = tuple[int, int, float]


def max_flow(num_nodes: int, edges: Sequence[Edge], source: int, sink: int) -> tuple[float, list[float]]:
    """The value, and the flow over each edge. Edges between the same two nodes share their flow by capacity."""
    finite = [capacity for _, _, capacity in edges if np.isfinite(capacity)]
    largest = max(finite, default=0.0)
    if largest <= 0.0:
        return 0.0, [0.0] * len(edges)
    total = min(sum(finite), largest * 20.0)  # stands for infinity
    amounts = np.array([min(capacity, total) for _, _, capacity in edges])
    units = np.maximum(np.rint(amounts * (RESOLUTION / largest)), 0).astype(np.int64).astype(np.int32)
    starts, ends = (np.array([edge[side] for edge in edges], dtype=np.int32) for side in (0, 1))
    graph = csr_matrix((units, (starts, ends)), shape=(num_nodes, num_nodes), dtype=np.int32)
    result = maximum_flow(graph, source, sink)
    scale = largest / RESOLUTION
    merged = np.maximum(np.asarray(graph[starts, ends]).ravel(), 1)
    flows = np.maximum(np.asarray(result.flow[starts, ends]).ravel(), 0) * (units / merged) * scale
    return float(result.flow_value) * scale, flows.tolist()


@dataclass(frozen=True, slots=True)
class NodeRates:
    """Helix's profile of each node, in generated tokens per second."""

    problem: Problem
    links_rows: Floats
    """What the uplink of each offer carries, in rows per second."""

    def rate(self, offer: int, work: float) -> float:
        return token_rate(self.problem.offers[offer].speed, work, self.problem.workload)

    def slice_rate(self, offer: int, span: Span) -> float:
        """Of the node with these layers; not more than its uplink carries on to a next stage."""
        work = self.problem.model.work[span[1]] - self.problem.model.work[span[0]]
        is_last = span[1] == self.problem.model.num_layers
        return self.rate(offer, work) if is_last else min(self.rate(offer, work), self.link_rate(offer))

    def link_rate(self, offer: int) -> float:
        """Tokens per second that its uplink carries: the prompts' rows pass it too."""
        return float(self.links_rows[offer]) / rows_per_token(self.problem.workload)


def node_rates(problem: Problem) -> NodeRates:
    rows = np.array([problem.links.row(offer.key.node_id) for offer in problem.offers], dtype=np.intp)
    row_bytes = problem.model.hidden_bytes
    uplinks = problem.links.uploads(rows) / row_bytes if row_bytes else np.full(len(rows), np.inf)
    return NodeRates(problem, uplinks)


def rows_per_token(workload: Workload) -> float:
    """Rows that pass a link for each token generated: the prompt's share of it, and the token's own."""
    return 1.0 + workload.num_prompt_tokens / max(1.0, workload.num_answer_tokens)


def token_rate(speed: Speed, work: float, workload: Workload) -> float:
    """Generated tokens per second with batches of `BATCH`, prompts included (Helix, arXiv 2406.01566, section 4.2:
    profiled throughput of a node with that many layers)."""
    prompt_s = speed.prefill_s * workload.num_prompt_tokens / max(1.0, workload.num_answer_tokens)
    return 1.0 / max(1e-12, work * (speed.step_s / BATCH + speed.row_s + prompt_s))


def span_flow(spans: dict[int, Span], rates: NodeRates, num_layers: int) -> float:
    """The most tokens per second that a placement can carry: maximum flow over the boundaries.

    Nodes that hold the same layers add up. Links count only by each node's uplink, which keeps the graph small."""
    return max_flow(num_layers + 1, _arcs(spans, rates), 0, num_layers)[0] if spans else 0.0


def _arcs(spans: dict[int, Span], rates: NodeRates) -> list[Edge]:
    merged: dict[Span, float] = {}
    for offer, span in spans.items():
        merged[span] = merged.get(span, 0.0) + rates.slice_rate(offer, span)
    return [(start, stop, rate) for (start, stop), rate in sorted(merged.items())]


def bottleneck(spans: dict[int, Span], rates: NodeRates, num_layers: int) -> list[Span]:
    """Of a minimum cut, the saturated spans: what more throughput would need."""
    arcs = _arcs(spans, rates)
    _, flows = max_flow(num_layers + 1, arcs, 0, num_layers)
    reached = {0}
    frontier = [0]
    while frontier:
        at = frontier.pop()
        onward = [
            end
            for (start, stop, rate), flow in zip(arcs, flows, strict=True)
            for begin, end, left in ((start, stop, rate - flow), (stop, start, flow))
            if begin == at and left > 1e-6 * rate
        ]
        frontier += [end for end in set(onward) if end not in reached]
        reached.update(onward)
    return [(start, stop) for start, stop, _ in arcs if start in reached and stop not in reached]
