"""What a change costs: bytes moved per join and leave, and what happens when many nodes leave at once. All simulated.

    python -m benchmarks.scheduling.changes [--seed 0 1] [--policies ours petals ...] [--json results.json]

**Bytes per change.** A pool without traffic (its planner is told the usual demand) goes through a sequence of single
leaves, each followed by the join of a new node, the same for every policy. After each change the pool is left alone
until nobody loads and QUIET_S have passed without an order, so that what a re-plan moves later counts for the change
that it came after. Counted is what devices are ordered to download: parts of their slices that are not on their disks,
on which is the slice that they had last. Nodes really keep more, and phase 1 reckons with it (`Offer.stored`); here who
goes back to an earlier slice downloads it again, so that going to and fro costs what it moves.

**The least possible**, for the service that the policy's own layout gives after the change:

- *copies*: if every layer has at least k holders then, and c of those who are here right after the change have a layer
  on their disks, then k - c of them must download it, whoever they are: the sum over layers is a lower bound for any
  way to k whole chains. A leave that leaves k holders of each layer needs nothing.
- *a newcomer* has an empty disk: it must download the slice that it serves with; nobody else needs to move.

The least of a leave is the first, that of a join the greater of both. It is strict: a survivor of a broken chain that
is put to use beside other holders adds throughput but no whole copy, and all that it loads is above it. Therefore a
second figure, *with survivors used*: a device that served nobody right after the change, though others served, must
download what its new slice lacks, as a newcomer must. What is above that was loaded by devices that did serve, or that
serve no one afterwards, or was loaded twice. *No re-plan* is over those changes alone after which nothing was ordered
by and by (migrations to a new layout): what repairs do. No figure of bytes sees what a policy does not restore:
therefore throughput after all changes relative to before stands beside them (the planner's forecast of lanes, and the
maximum flow over slices, Helix's measure, which knows paths that are no lanes but neither latency nor KV), and the
share of the time in which there was a whole chain.

**Many leave.** The presets `half-leave` and `outage`, and `half-leave` with so few nodes that the last chain may break.
*No chain* is the longest time without a whole chain of ready devices that are really there; *download* the time that
the device that ended it needs for what it lacked, alone at its own line's rate (or the mirror's), loading included.
*Least* is the shortest that the gap could have been from when the pool heard of the last loss in it (soonest.py): all
lines known, the mirror shared, and what was ordered before then as it was; only for few devices.
A chain with a hole, over a slice that is not held or with more KV than there is raises ImpossibleCommand, which is
counted as served wrongly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.baselines.flow import node_rates, span_flow
from benchmarks.scheduling.downloads import (
    GB,
    Layout,
    Ledger,
    least_bytes,
    num_copies,
    piece_of,
    serving,
)
from benchmarks.scheduling.losses import Loss, lose_many, losses_table, many_leave_scenarios
from benchmarks.scheduling.scenarios import CARDS
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import model_cost
from coordinator.scheduler.forecast import lanes_of, layout_forecast
from coordinator.scheduler.policy import Policy
from coordinator.scheduler.problems import problem_of
from coordinator.scheduler.scheduler import Scheduler
from coordinator.simulate import engine
from coordinator.simulate.churn import Fate, Turn
from coordinator.simulate.hardware import VARIANT
from coordinator.simulate.models import MODELS
from coordinator.simulate.scenario import Pool, Scenario, ServedModel, Traffic
from coordinator.simulate.world import SimDevice

MODEL = "llama3-70b-4bit"
SIZES = (16, 64, 256)
NUM_PAIRS = 40
"""Leaves, and as many joins."""
REQUESTS_PER_NODE = 0.05
"""Per second: the demand that planners are told, as in the preset half-leave."""
TICK_S = 5.0
QUIET_S = 150.0
"""Longer than the planner waits before it looks for a better layout (migrations.py: CHECK_S and QUIET_S)."""
MOST_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Change:
    """A node leaves, or a new one joins."""

    node: int
    is_join: bool


@dataclass(frozen=True, slots=True)
class Effect:
    """Of one change, in bytes. `least_used` is with survivors used."""

    is_join: bool
    moved: float
    least: float
    least_used: float
    num_devices: int
    replanned: float
    by_serving: float
    """Of `moved`: by devices that served already."""
    copies_before: int
    copies_after: int
    tokens_per_s: float
    flow: float
    served_s: float
    passed_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A policy's changes in a pool, over all of them."""

    num_nodes: int
    policy: str
    seed: int
    tokens_before: float
    tokens_after: float
    flow_before: float
    flow_after: float
    effects: tuple[Effect, ...] = field(repr=False)

    def of(self, *, is_join: bool) -> list[Effect]:
        return [effect for effect in self.effects if effect.is_join is is_join]


# ---------------------------------------------------------------- one change after the other


def sequence(num_nodes: int, num_pairs: int, seed: int) -> list[Change]:
    """Somebody leaves, a new node joins, and so on. Nodes from `num_nodes` on are the newcomers, in their order."""
    rng = np.random.default_rng(seed)
    here = list(range(num_nodes))
    changes = []
    for newcomer in range(num_nodes, num_nodes + num_pairs):
        gone = here.pop(int(rng.integers(len(here))))
        here.append(newcomer)
        changes += [Change(gone, is_join=False), Change(newcomer, is_join=True)]
    return changes


def scenario_of(num_nodes: int) -> Scenario:
    """Cards on fibre lines in four regions."""
    return Scenario(
        name=f"changes-{num_nodes}",
        models=(ServedModel(MODEL),),
        pool=Pool(num_nodes, {name: float(share) for name, share in CARDS.items()}, 4, "fibre"),
        traffic=Traffic(requests_per_s=REQUESTS_PER_NODE * num_nodes),
    )


class ChangingPool:
    """A pool that is up, planned and loaded, and what single changes do to it. One model."""

    def __init__(self, scenario: Scenario, policy: Policy | None, num_newcomers: int, seed: int) -> None:
        self._digest = MODELS[scenario.models[0].name].facts.manifest_hash
        self._cost = model_cost(MODELS[scenario.models[0].name].facts, VARIANT)
        self._scheduler: Scheduler = engine.new_scheduler(scenario, policy)
        num_nodes = scenario.pool.num_nodes
        pool = msgspec.structs.replace(scenario.pool, num_nodes=num_nodes + num_newcomers)
        simulation = engine.Simulation(msgspec.structs.replace(scenario, pool=pool), self._scheduler, seed=seed)
        self._timeline, self._fleet = simulation.timeline, simulation.fleet
        self.ledger = Ledger(simulation, is_last_only=True)
        nodes = self._fleet.nodes
        nodes[:], newcomers = nodes[:num_nodes], nodes[num_nodes:]
        simulation.found()
        nodes += newcomers
        self._settle()

    def apply(self, change: Change) -> Effect:
        """The change, and all that comes of it."""
        node, began_s, num_orders = self._fleet.nodes[change.node], self._timeline.now_s, len(self.ledger.orders)
        copies = num_copies(self._cost, self.layout().held)
        before = self.layout(without=None if change.is_join else node.device)
        if change.is_join:
            self._fleet.join(node)
        else:
            self._fleet.meet(Fate(0.0, change.node, Turn.LEAVE))
        served_s = self._settle()
        newcomer = node.device.key if change.is_join else None
        orders = [order for order in self.ledger.orders[num_orders:] if order.num_bytes]
        served_before, after = serving(self._cost, before.held), self.layout()
        return Effect(
            change.is_join,
            sum(order.num_bytes for order in orders),
            *least_bytes(self._cost, before, after, newcomer),
            len({order.key for order in orders}),
            sum(order.num_bytes for order in orders if order.cause == "re-plan"),
            sum(order.num_bytes for order in orders if order.key in served_before),
            copies,
            num_copies(self._cost, after.held),
            *self.rates(),
            served_s,
            self._timeline.now_s - began_s,
        )

    def layout(self, without: SimDevice | None = None) -> Layout:
        here = [d for d in self._fleet.devices.values() if d.node.is_up and d is not without]
        held = {d.key: piece_of(d.layers) for d in here if d.layers and d.is_ready}
        return Layout(held, {d.key: frozenset(self.ledger.disk(d, self._digest)) for d in here})

    def rates(self) -> tuple[float, float]:
        """Tokens per second of what is held and ready: the planner's forecast, to which what is part of no lane counts
        for nothing, and the maximum flow."""
        scheduler = self._scheduler
        problem = problem_of(scheduler.state, self._digest, VARIANT, scheduler.workloads, scheduler.config)
        held = {i: o.held for i, o in enumerate(problem.offers) if o.held is not None and not o.is_loading}
        spans = {i: piece_of(layers) for i, layers in held.items()}
        flow = span_flow(spans, node_rates(problem), self._cost.num_layers)
        return layout_forecast(problem, lanes_of(problem, held)).tokens_per_s, flow

    def _settle(self) -> float:
        """Until nobody loads and nothing has been ordered for QUIET_S. Returns seconds in which a chain was whole."""
        served_s, began_s, timeline = 0.0, self._timeline.now_s, self._timeline
        while timeline.now_s < began_s + MOST_S and not self._is_quiet(began_s):
            until_s = timeline.now_s + TICK_S
            timeline.run(until_s, lambda: False)
            timeline.now_s = until_s
            timeline.tell(ev.TimePassed())
            served_s += TICK_S * self._scheduler.is_ready(self._digest)
        return served_s

    def _is_quiet(self, began_s: float) -> bool:
        last_s = max(began_s, self.ledger.orders[-1].at_s if self.ledger.orders else 0.0)
        loads = any(d.layers is not None and not d.is_ready for d in self._fleet.devices.values() if d.node.is_up)
        return not loads and self._timeline.now_s >= last_s + QUIET_S


def measure_changes(scenario: Scenario, policy: Policy | None, changes: Sequence[Change], seed: int) -> Row:
    """One policy, one pool, these changes."""
    pool = ChangingPool(scenario, policy, sum(change.is_join for change in changes), seed)
    tokens_before, flow_before = pool.rates()
    effects = tuple(pool.apply(change) for change in changes)
    name = engine.OURS if policy is None else policy.name
    tokens_after, flow_after = pool.rates()
    return Row(scenario.pool.num_nodes, name, seed, tokens_before, tokens_after, flow_before, flow_after, effects)


# ---------------------------------------------------------------- tables


def _ratio(moved: float, least: float) -> str:
    if least:
        return f"{moved / least:.2f}"
    return "-" if not moved else "above 0"


def changes_table(rows: Sequence[Row]) -> str:
    """In markdown; seeds of a policy and size together."""
    lines = [
        "| nodes | policy | GB/join | least | x | GB/leave | least | x | x, both | x, no re-plan | x, survivors used "
        "| moved/join | moved/leave | GB re-planned | GB by who served | copies | tok/s after/before "
        "| flow after/before | whole chain |",
        "|" + "---|" * 19,
    ]
    for num_nodes, policy in dict.fromkeys((row.num_nodes, row.policy) for row in rows):
        lines.append(_changes_line([r for r in rows if (r.num_nodes, r.policy) == (num_nodes, policy)]))
    return "\n".join(lines)


def _changes_line(rows: Sequence[Row]) -> str:
    joins, leaves = ([e for row in rows for e in row.of(is_join=kind)] for kind in (True, False))
    both = [*joins, *leaves]
    calm = [effect for effect in both if not effect.replanned]
    per_join, per_leave = _mean_gb(e.moved for e in joins), _mean_gb(e.moved for e in leaves)
    least_join, least_leave = _mean_gb(e.least for e in joins), _mean_gb(e.least for e in leaves)
    cells = [
        f"{rows[0].num_nodes}",
        rows[0].policy,
        f"{per_join:.1f}",
        f"{least_join:.1f}",
        _ratio(per_join, least_join),
        f"{per_leave:.1f}",
        f"{least_leave:.1f}",
        _ratio(per_leave, least_leave),
        _ratio(sum(e.moved for e in both), sum(e.least for e in both)),
        _ratio(sum(e.moved for e in calm), sum(e.least for e in calm)),
        _ratio(sum(e.moved for e in both), sum(e.least_used for e in both)),
        f"{np.mean([e.num_devices for e in joins]):.2f}",
        f"{np.mean([e.num_devices for e in leaves]):.2f}",
        f"{sum(e.replanned for e in both) / GB:.0f}",
        f"{sum(e.by_serving for e in both) / GB:.0f}",
        f"{np.mean([r.effects[0].copies_before for r in rows]):.0f} to "
        f"{np.mean([r.effects[-1].copies_after for r in rows]):.0f}",
        f"{np.mean([r.tokens_after / max(1.0, r.tokens_before) for r in rows]):.2f}",
        f"{np.mean([r.flow_after / max(1.0, r.flow_before) for r in rows]):.2f}",
        f"{sum(e.served_s for e in both) / sum(e.passed_s for e in both):.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _mean_gb(values: Iterable[float]) -> float:
    return float(np.mean(list(values))) / GB


def _policy(name: str) -> Policy | None:
    return None if name == engine.OURS else POLICIES[name]()


def main() -> None:
    """Run all, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", "--seed", type=int, nargs="+", default=[0])
    names = [engine.OURS, *POLICIES]
    parser.add_argument("--policies", nargs="+", choices=names, default=names)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--pairs", type=int, default=NUM_PAIRS, help="leaves, and as many joins")
    parser.add_argument("--without-losses", action="store_true", help="only the bytes of single changes")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    arguments = parser.parse_args()
    rows: list[Row] = []
    losses: list[Loss] = []
    runs = [(name, seed) for name in arguments.policies for seed in arguments.seeds]
    for size in arguments.sizes:
        changes = {seed: sequence(size, arguments.pairs, seed) for seed in arguments.seeds}
        some = [measure_changes(scenario_of(size), _policy(name), changes[seed], seed) for name, seed in runs]
        print(changes_table(some), end="\n\n", flush=True)
        rows += some
    for scenario in [] if arguments.without_losses else many_leave_scenarios():
        found = [lose_many(scenario, _policy(name), seed) for name, seed in runs]
        print(losses_table(found), end="\n\n", flush=True)
        losses += found
    if arguments.json:
        raw = {"changes": [asdict(row) for row in rows], "losses": [asdict(loss) for loss in losses]}
        arguments.json.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
