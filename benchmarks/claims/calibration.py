"""A pool of real processes against the simulator's prediction of the same pool under the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.claims.playing import BOUND, Effort, play_asks
from benchmarks.claims.policies import OURS, policy_named
from benchmarks.claims.pool import EmulatedPool, emulated_pool
from benchmarks.claims.predicting import PlayedPool, hop_overhead_s, predict, relative_error
from benchmarks.claims.report import Kind, RowResult
from benchmarks.claims.scene import UNEQUAL, Ask, Load
from benchmarks.claims.users import Answer, summarise
from benchmarks.claims.watching import Benchmarked
from coordinator.scheduler.cost import Speed
from protocol.values import LayerRange

RATES = (0.2, 0.8)
NUM_ALONE = 5
ALONE_EVERY_S = 8.0


def calibration(effort: Effort) -> RowResult:
    """Speeds and the cost of a hop are taken from the idle pool; what is predicted is the loaded one."""
    policy = (effort.policies or (OURS,))[0]
    rows = [("requests/s", "time per token: real", "predicted", "error", "tokens/s: real", "predicted", "error")]
    errors: list[tuple[float, float]] = []
    with emulated_pool(UNEQUAL, effort.model_folder, policy, effort.scratch, effort.seed) as pool:
        speeds = measured_speeds(pool)
        hop_s, pool_layers = _hop_s(pool, speeds), pool.layers()
        held = {name: _range(text) for name, text in pool_layers.items() if text}
        for rate in RATES:
            load = Load(rate, effort.load_s)
            asks = load.asks(effort.seed)
            answers, _, _ = play_asks(pool, asks)
            seen = summarise(answers, load.warm_up_s, load.duration_s, BOUND)
            told = PlayedPool(UNEQUAL, pool.facts, speeds, held, hop_s, tuple(asks), load.duration_s, load.warm_up_s)
            foretold = predict(told, policy_named(policy), effort.seed)
            off = (
                relative_error(foretold.tpot_s.mean, seen.mean_tpot_s),
                relative_error(foretold.tokens_per_s, seen.tokens_per_s),
            )
            errors.append(off)
            times = (f"{1000 * seen.mean_tpot_s:.0f} ms", f"{1000 * foretold.tpot_s.mean:.0f} ms")
            rates = (f"{seen.tokens_per_s:.1f}", f"{foretold.tokens_per_s:.1f}")
            rows.append((f"{rate:g}", *times, f"{100 * off[0]:.0f} %", *rates, f"{100 * off[1]:.0f} %"))
    means = [100 * sum(off[which] for off in errors) / len(errors) for which in (0, 1)]
    return RowResult(
        name="calibration",
        kind=Kind.EMULATED,
        claim="The simulator's prediction of a real pool's time per token and throughput is right within 15 % on"
        " average.",
        found=f"Mean error of time per token {means[0]:.0f} %, of throughput {means[1]:.0f} %.",
        seed=effort.seed,
        table=tuple(rows),
        raw={"hop_s": hop_s, "errors": errors, "layers": pool_layers},
    )


def measured_speeds(pool: EmulatedPool) -> dict[str, Speed]:
    """As each node measured itself when it joined, by name."""
    names = pool.node_names()
    found = {note.node_id: note for note in pool.notes() if isinstance(note, Benchmarked)}
    return {
        name: Speed(note.step_s, note.row_s, note.prefill_s, note.head_s)
        for id_, name in names.items()
        for node_id, note in found.items()
        if node_id.startswith(id_)
    }


def _hop_s(pool: EmulatedPool, speeds: Mapping[str, Speed]) -> float:
    """From requests that have the pool to themselves."""
    asks = [Ask(number * ALONE_EVERY_S, 64, 32) for number in range(NUM_ALONE)]
    answers, _, _ = play_asks(pool, asks)
    whole = [answer for answer in answers if answer.is_whole]
    layers = {name: _range(text) for name, text in pool.layers().items() if text}
    overheads = [_overhead_s(pool, answer, layers, speeds) for answer in whole]
    return sum(overheads) / len(overheads) if overheads else 0.0


def _overhead_s(
    pool: EmulatedPool, answer: Answer, layers: Mapping[str, LayerRange], speeds: Mapping[str, Speed]
) -> float:
    chain = answer.nodes
    stage_s = sum(
        speeds[name].step_time_s(len(layers[name]), 1, last=name == chain[-1]) for name in chain if name in layers
    )
    return hop_overhead_s([answer.tpot_s], stage_s, ring_delay_s(pool, chain), len(chain) if len(chain) > 1 else 0)


def ring_delay_s(pool: EmulatedPool, chain: Sequence[str]) -> float:
    """One token's trip on the network: along the chain, and from its tail to its head."""
    topology = pool.scene.topology
    hops = [(one, other) for one, other in zip(chain, [*chain[1:], chain[0]], strict=True) if one != other]
    links = [topology.link(*hop) for hop in hops]
    return sum(link.delay_s + link.jitter_s / 2 for link in links)


def _range(text: str) -> LayerRange:
    """From what the pool shows: first and last layer, counted from 0, with a dash."""
    first, _, last = text.partition("-")
    return LayerRange(int(first), int(last or first) + 1)
