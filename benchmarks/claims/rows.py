"""The rows of docs/claims.md that compare pools under load. Each is a function of an effort."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.claims.playing import (
    Effort,
    Ladder,
    Played,
    climb_with,
    climb_with_all,
    fresh_pool,
    play_asks,
    played,
    rising,
    used,
)
from benchmarks.claims.policies import DECENTRALISED, OURS
from benchmarks.claims.pool import EmulatedPool
from benchmarks.claims.report import Kind, RowResult
from benchmarks.claims.scene import FAST, LONG, UNEQUAL, Load, NodeRole, Scene, burst, equal, megabits

GENTLE = Load(0.2, 60.0)
"""So few requests that they hardly meet: latency is the chain's own."""
NUM_STEPS = 6
"""A ladder ends sooner when goodput falls."""


def two_phases(effort: Effort) -> RowResult:
    """Our two phases against others' policies, through the same coordinator."""
    ladders = _ladders(effort, UNEQUAL, GENTLE)
    return RowResult(
        name="two-phases",
        kind=Kind.EMULATED,
        claim="On nodes of unequal speed and memory in three regions, with uplinks of 10 to 50 Mbit/s, the two phases"
        " have lower mean latency and higher throughput than the policies of other decentralised systems.",
        found=against_best(ladders),
        seed=effort.seed,
        table=ladder_table(ladders),
        raw={"ladders": msgspec.to_builtins(ladders)},
    )


def low_bandwidth(effort: Effort) -> RowResult:
    """The same where links are slow and prompts long, so that rows wait for links rather than for devices."""
    scene = UNEQUAL.with_lines(megabits(10))
    ladders = _ladders(effort, scene, Load(0.2, 60.0, lengths=LONG))
    return RowResult(
        name="low-bandwidth",
        kind=Kind.EMULATED,
        claim="With 10 Mbit/s uplinks and prompts of hundreds to thousands of tokens (4 KiB a row, 3 ms on the link),"
        " the pool serves on, and better than with the other policies.",
        found=against_best(ladders),
        seed=effort.seed,
        table=ladder_table(ladders),
        raw={"ladders": msgspec.to_builtins(ladders)},
    )


BALANCE_POLICIES = (OURS, "parallax-dp-rr", "petals", "random")
NUM_IN_BURST = 32


def balance(effort: Effort) -> RowResult:
    """A burst over four equal nodes that each hold the whole model."""
    scene = equal(4, max_layers=12)
    rows, raw = [("policy", "busiest node", "idlest node", "spread", "mean latency", "last answer")], {}
    policies = effort.policies or BALANCE_POLICIES
    with fresh_pool(effort, scene, policies[0]) as pool:
        for policy in policies:
            layers = used(pool, policy).layers()
            step = _play_burst(pool)
            shares = step.busy_share or {"none": 0.0}
            spread = relative_spread(list(shares.values()))
            cells = (f"{100 * max(shares.values()):.0f} %", f"{100 * min(shares.values()):.0f} %", f"{spread:.2f}")
            rows.append((policy, *cells, f"{step.summary.mean_latency_s:.1f} s", f"{step.length_s:.1f} s"))
            raw[policy] = {"layers": layers, "played": msgspec.to_builtins(step), "spread": spread}
    return RowResult(
        name="balance",
        kind=Kind.EMULATED,
        claim=f"A burst of {NUM_IN_BURST} requests over four equal replicas is spread evenly: a node's cost rises the"
        " moment it is chosen. Spread: standard deviation of the nodes' utilisation over its mean.",
        found="; ".join(f"{row[0]}: spread {row[3]}" for row in rows[1:]),
        seed=effort.seed,
        table=tuple(rows),
        raw=raw,
    )


def _play_burst(pool: EmulatedPool) -> Played:
    answers, busy_s, machine = play_asks(pool, burst(NUM_IN_BURST, 64, 32))
    length_s = max((a.token_times_s[-1] for a in answers if a.token_times_s), default=1.0)
    return played(answers, Load(NUM_IN_BURST, length_s, warm_up_s=0.0), busy_s, machine)


def relative_spread(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 where all are nothing."""
    mean = statistics.fmean(values)
    return statistics.pstdev(values) / mean if mean else 0.0


ELASTIC_NUM_NODES = (2, 4, 8)


def elasticity(effort: Effort) -> RowResult:
    """Throughput against the number of equal nodes; each holds half of the model."""
    ladders = {
        num: climb_with(effort, equal(num, max_layers=6), OURS, rising(effort, Load(0.4 * num / 2, 60.0), NUM_STEPS))
        for num in ELASTIC_NUM_NODES
    }
    base = ladders[ELASTIC_NUM_NODES[0]].best_goodput / ELASTIC_NUM_NODES[0]
    rows = [("nodes", "tokens/s in the bound", "of linear", "machine busy at most")]
    for num, ladder in ladders.items():
        share = ladder.best_goodput / (base * num) if base else 0.0
        busy = max(step.machine_busy_share for step in ladder.steps)
        rows.append((str(num), f"{ladder.best_goodput:.1f}", f"{100 * share:.0f} %", f"{100 * busy:.0f} %"))
    return RowResult(
        name="elasticity",
        kind=Kind.EMULATED,
        claim="Throughput grows with the number of nodes.",
        found="; ".join(f"{row[0]} nodes: {row[1]} tokens/s" for row in rows[1:]),
        seed=effort.seed,
        table=tuple(rows),
        raw={str(num): msgspec.to_builtins(ladder) for num, ladder in ladders.items()},
    )


BIG_NODE = Scene((NodeRole("big", "west", 12, FAST, megabits(50)),), within=UNEQUAL.within)


def cost(effort: Effort) -> RowResult:
    """Node-seconds per million tokens, against one node that holds the whole model and is as fast as the fastest."""
    scenes = {"eight unequal nodes": UNEQUAL, "one big node": BIG_NODE}
    rows = [("pool", "tokens/s in the bound", "computing", "present")]
    ladders = {}
    for name, scene in scenes.items():
        ladders[name] = climb_with(effort, scene, OURS, rising(effort, GENTLE, NUM_STEPS))
        busy, present = node_seconds_per_million(ladders[name], len(scene.nodes))
        rows.append((name, f"{ladders[name].best_goodput:.1f}", f"{busy:,.0f}", f"{present:,.0f}"))
    return RowResult(
        name="cost",
        kind=Kind.EMULATED,
        claim="What a pool of volunteers costs over one big node, in node-seconds per million tokens: those in which a"
        " node computes, and those in which it is there. Energy needs real devices (docs/pause.md has one card's).",
        found="; ".join(f"{row[0]}: {row[2]} node-seconds computing" for row in rows[1:]),
        seed=effort.seed,
        table=tuple(rows),
        raw={name: msgspec.to_builtins(ladder) for name, ladder in ladders.items()},
    )


def node_seconds_per_million(ladder: Ladder, num_nodes: int) -> tuple[float, float]:
    """Computing and present, at the ladder's best step; zeros if nothing was served."""
    best = max(ladder.steps, key=lambda step: step.summary.goodput_tokens_per_s)
    if not best.summary.tokens_per_s:
        return 0.0, 0.0
    per_million = 1e6 / best.summary.tokens_per_s
    return sum(best.busy_share.values()) * per_million, num_nodes * per_million


# ---------------------------------------------------------------- tables


def _ladders(effort: Effort, scene: Scene, gentle: Load) -> list[Ladder]:
    policies = effort.policies or (OURS, *DECENTRALISED)
    return climb_with_all(effort, scene, policies, rising(effort, gentle, NUM_STEPS))


def ladder_table(ladders: Sequence[Ladder]) -> tuple[tuple[str, ...], ...]:
    """Latency at the lowest rate, which all policies meet alike; throughput at the best."""
    rows: list[tuple[str, ...]] = [
        ("policy", "mean latency", "p99", "time to first token", "time per token", "best tokens/s in the bound")
    ]
    for ladder in ladders:
        first = ladder.first
        times = (first.mean_latency_s, first.p99_latency_s, first.mean_ttft_s)
        cells = [*(f"{value:.2f} s" for value in times), f"{1000 * first.mean_tpot_s:.0f} ms"]
        most = f"{ladder.best_goodput:.1f} at {ladder.best.requests_per_s:g}/s"
        rows.append((ladder.policy, *cells, most + (", the highest rate tried" if ladder.is_open else "")))
    return tuple(rows)


def against_best(ladders: Sequence[Ladder]) -> str:
    """Ours against the best of the others, each measure for itself."""
    ours = next((ladder for ladder in ladders if ladder.policy == OURS), None)
    others = [ladder for ladder in ladders if ladder.policy != OURS and ladder.first.num_whole]
    if ours is None or not others or not ours.first.num_whole:
        return "Nothing to compare."
    latency_s = min(ladder.first.mean_latency_s for ladder in others)
    goodput = max(ladder.best_goodput for ladder in others)
    lower = 100 * (1 - ours.first.mean_latency_s / latency_s)
    where = f"{abs(lower):.1f} % {'below' if lower >= 0.0 else 'above'}"
    times = ours.best_goodput / goodput if goodput else float("inf")
    return f"Mean latency {where} the best other policy, throughput {times:.2f} times the best other's."
