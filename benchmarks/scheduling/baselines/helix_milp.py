"""Helix's mixed integer program for the placement (Mei et al., arXiv 2406.01566, section 4.4), on SciPy's HiGHS.

Per node: its first layer s, one binary b_n per number of layers n it may hold, and the flow through it, at most its
profiled throughput with n layers. Per pair of nodes: a binary that says the second begins where the first ends, and the
flow over the link, at most the link's rate. Source and sink are pairs with nodes that begin at 0 or end at L. There is
no partial inference: chains run over whole slices, as the pool's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from benchmarks.scheduling.baselines.capacity import Span
from coordinator.scheduler.links import Floats

Terms = dict[int, float]
"""Coefficients by variable."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the program is about. `rates[i][n]`: tokens per second of node i with n layers (n = 0: nothing).

    `most`, `most_first`, `most_last`: how many layers fit in the middle, and beside embedding or head."""

    num_layers: int
    rates: Sequence[Sequence[float]]
    most: Sequence[int]
    most_first: Sequence[int]
    most_last: Sequence[int]
    link_rates: Floats

    @property
    def num_nodes(self) -> int:
        return len(self.rates)


@dataclass(frozen=True, slots=True)
class Effort:
    """When to stop: nodes of the search tree (the same answer every time), and seconds as a safeguard."""

    num_tree_nodes: int = 200
    time_limit_s: float = 10.0


class _Program:
    """Collects variables and rows."""

    def __init__(self) -> None:
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.is_integer: list[int] = []
        self.rows: list[tuple[Terms, float, float]] = []

    def variable(self, upper: float, *, integer: bool = False) -> int:
        self.lower.append(0.0)
        self.upper.append(upper)
        self.is_integer.append(int(integer))
        return len(self.upper) - 1

    def row(self, terms: Terms, lower: float = -np.inf, upper: float = np.inf) -> None:
        self.rows.append((terms, lower, upper))

    def solve(self, objective: Terms, effort: Effort) -> Floats | None:
        entries = [(r, c, value) for r, (terms, _, _) in enumerate(self.rows) for c, value in terms.items()]
        rows, columns, values = zip(*entries, strict=True)
        matrix = coo_matrix((values, (rows, columns)), shape=(len(self.rows), len(self.upper))).tocsr()
        limits = LinearConstraint(matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows])
        costs = np.zeros(len(self.upper))
        for column, value in objective.items():
            costs[column] = -value
        options = {"node_limit": effort.num_tree_nodes, "time_limit": effort.time_limit_s, "disp": False}
        bounds = Bounds(np.array(self.lower), np.array(self.upper))
        result = milp(costs, constraints=limits, bounds=bounds, integrality=self.is_integer, options=options)
        return None if result.x is None else np.asarray(result.x)


@dataclass(frozen=True, slots=True)
class _Node:
    """Its variables. `size` are the binaries b_n for n = 1 ... most."""

    start: int
    size: tuple[int, ...]
    entry: int
    entry_flow: int
    leave: int
    leave_flow: int

    def stop(self, sign: float = 1.0) -> Terms:
        """s + sum n b_n."""
        return {self.start: sign, **{b: sign * n for n, b in enumerate(self.size, 1)}}


def solve(cluster: Cluster, effort: Effort, at_least: float = 0.0) -> dict[int, Span] | None:
    """Spans by node with the most flow that was found; None if none was found within the effort.

    `at_least`, in tokens per second, is what is known already: worse placements are not looked at."""
    program = _Program()
    usable = [i for i in range(cluster.num_nodes) if cluster.most[i] > 0]
    if not usable:
        return None
    scale = max(cluster.rates[i][1] for i in usable)
    nodes = {i: _node(program, cluster, i, scale) for i in usable}
    into: dict[int, Terms] = {i: {nodes[i].entry_flow: 1.0} for i in usable}
    out: dict[int, Terms] = {i: {nodes[i].leave_flow: 1.0} for i in usable}
    for i in usable:
        for j in usable:
            if i != j:
                flow = _link(program, nodes[i], nodes[j], cluster.num_layers, cluster.link_rates[i, j] / scale)
                out[i][flow] = into[j][flow] = 1.0
    for i in usable:
        program.row({**into[i], **dict.fromkeys(out[i], -1.0)}, 0.0, 0.0)
        limit = {b: -cluster.rates[i][n] / scale for n, b in enumerate(nodes[i].size, 1)}
        program.row({**into[i], **limit}, upper=0.0)
    entries = {nodes[i].entry_flow: 1.0 for i in usable}
    program.row(entries, lower=at_least / scale)
    x = program.solve(entries, effort)
    return None if x is None else {i: _span(x, nodes[i]) for i in usable}


def _node(program: _Program, cluster: Cluster, i: int, scale: float) -> _Node:
    num_layers = cluster.num_layers
    most = cluster.rates[i][1] / scale
    node = _Node(
        start=program.variable(num_layers - 1, integer=True),
        size=tuple(program.variable(1, integer=True) for _ in range(cluster.most[i])),
        entry=program.variable(1, integer=True),
        entry_flow=program.variable(most),
        leave=program.variable(1, integer=True),
        leave_flow=program.variable(most),
    )
    program.row(dict.fromkeys(node.size, 1.0), 1.0, 1.0)
    program.row(node.stop(), upper=num_layers)
    program.row({node.start: 1.0, node.entry: num_layers}, upper=num_layers)  # entry: begins at 0
    program.row({**node.stop(), node.leave: -num_layers}, lower=0.0)  # leave: ends at L
    program.row({node.entry_flow: 1.0, node.entry: -most}, upper=0.0)
    program.row({node.leave_flow: 1.0, node.leave: -most}, upper=0.0)
    layers = {b: float(n) for n, b in enumerate(node.size, 1)}
    for at_end, fitting in ((node.entry, cluster.most_first[i]), (node.leave, cluster.most_last[i])):
        program.row({**layers, at_end: cluster.most[i] - fitting}, upper=cluster.most[i])
    return node


def _link(program: _Program, one: _Node, other: _Node, num_layers: int, rate: float) -> int:
    """The flow from one to the other: only if the other begins where the first ends."""
    limit = min(rate, 1.0)
    joined = program.variable(1, integer=True)
    flow = program.variable(limit)
    gap = {**one.stop(-1.0), other.start: 1.0}
    program.row({**gap, joined: num_layers}, upper=num_layers)
    program.row({**gap, joined: -num_layers}, lower=-num_layers)
    program.row({flow: 1.0, joined: -limit}, upper=0.0)
    return flow


def _span(x: Floats, node: _Node) -> Span:
    start = round(float(x[node.start]))
    return start, start + 1 + int(np.argmax([x[b] for b in node.size]))
