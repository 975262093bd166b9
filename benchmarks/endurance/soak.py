"""One fault a second for a long time, while people ask without a pause: every answer right, memory and handles flat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.endurance.asking import End, Manner
from benchmarks.endurance.crowd import Crowd, Tally
from benchmarks.endurance.faults import Faults
from benchmarks.endurance.pool import ToyPool, num_serving, toy_pool
from benchmarks.endurance.report import Aim, RowResult
from benchmarks.endurance.watching import Trend, Watched

NUM_NODES = 6
LEAST_SERVING = 2
"""With as many the model can be whole."""
LAYERS_EACH = 3
SURVIVORS = frozenset({"node-0", "node-1"})
NUM_ASKERS = 8
MANNERS = {Manner.PATIENT: 6, Manner.DISCONNECTS: 2, Manner.CANCELS: 2, Manner.STOPS_READING: 1}
FAULT_EVERY_S = 1.0
SAMPLE_EVERY_S = 2.0
KILLS_SHARE = 0.4
"""Of the time: in it the coordinator is killed now and then; the rest is one life, which is watched."""
WARM_UP_SHARE = 0.25
"""Of a watched life. What is kept for a while (answers for RETENTION_S, links, caches) grows until it is full."""
RETENTION_S = 30.0
MAX_GROWTH_MB = 2.0
MAX_GROWTH_SHARE = 0.03
MAX_NEW_HANDLES = 3.0
SETTINGS = f"[answers]\nretention_s = {RETENTION_S:.0f}\n"


@dataclass
class Effort:
    minutes: float
    seed: int
    scratch: Path
    fault_every_s: float = FAULT_EVERY_S


@dataclass
class Watch:
    """Samples of the coordinator's lives and of the agents that are never killed."""

    pool: ToyPool
    lives: list[Watched] = field(default_factory=list)
    agents: list[Watched] = field(default_factory=list)

    def begin(self) -> None:
        self.agents = [Watched(node.name, node.pid) for node in self.pool.nodes if node.name in SURVIVORS]
        self.new_life()

    def new_life(self) -> None:
        self.lives.append(Watched("coordinator", self.pool.coordinator_pid))

    def look(self) -> None:
        for watched in (self.lives[-1], *self.agents):
            watched.look(time.monotonic())

    def trends(self) -> dict[str, Trend]:
        found = {}
        for watched in (self.lives[-1], *self.agents):
            samples = watched.samples
            length_s = samples[-1].at_s - samples[0].at_s if samples else 0.0
            trend = watched.trend(WARM_UP_SHARE * length_s)
            if trend is not None:
                found[watched.name] = trend
        return found


def soak(effort: Effort) -> RowResult:
    """The row."""
    return asyncio.run(_soak(effort))


async def _soak(effort: Effort) -> RowResult:
    folder = effort.scratch / "soak"
    (folder / "pool").mkdir(parents=True)
    (folder / "pool" / "pool.toml").write_text(SETTINGS, encoding="utf-8")
    async with toy_pool(folder) as pool:
        for number in range(NUM_NODES):
            await pool.add_node(f"node-{number}", LAYERS_EACH)
        await pool.until_serving(NUM_NODES)
        watch = Watch(pool)
        watch.begin()
        faults = Faults(pool, effort.seed, SURVIVORS, watch.new_life)
        crowd = Crowd(pool, NUM_ASKERS, MANNERS, effort.seed)
        crowd.open()
        await _play(effort, watch, faults, crowd)
        await faults.end()
        await crowd.close()
        facts = await _afterwards(pool, watch)
    return _result(effort, crowd.tally, faults, watch.trends(), facts)


async def _play(effort: Effort, watch: Watch, faults: Faults, crowd: Crowd) -> None:
    began_s = time.monotonic()
    end_s, sample_at_s, told = began_s + 60 * effort.minutes, began_s, 0
    while (now_s := time.monotonic()) < end_s:
        faults.kills_coordinator = now_s < began_s + KILLS_SHARE * (end_s - began_s)
        faults.inject()
        if now_s >= sample_at_s:
            watch.look()
            sample_at_s = now_s + SAMPLE_EVERY_S
        if (minute := int((now_s - began_s) / 60)) > told:
            told = minute
            print(f"minute {minute}: {dict(crowd.tally.ends)}, {faults.counts.total()} faults", flush=True)
        await asyncio.sleep(effort.fault_every_s)


async def _afterwards(pool: ToyPool, watch: Watch) -> dict[str, Any]:
    """Once nothing is wrong any more: the model is served. (Who was away often is on probation for minutes.)"""
    state = await pool.until_serving(LEAST_SERVING)
    watch.look()
    return {
        "num_serving": num_serving(state),
        "coordinator_starts": pool.num_starts,
        "num_waiting": state["num_waiting"],
        "blames": pool.blames()[:5],
        "num_blames": len(pool.blames()),
        "tracebacks": pool.tracebacks(),
    }


# ---------------------------------------------------------------- the row


def _result(
    effort: Effort, tally: Tally, faults: Faults, trends: Mapping[str, Trend], facts: dict[str, Any]
) -> RowResult:
    num_wrong, num_lost = tally.count(End.WRONG), tally.count(End.LOST)
    aims = [
        Aim("answers changed, or with a token twice", "0", str(num_wrong), num_wrong == 0),
        Aim("answers lost", "0", str(num_lost), num_lost == 0),
        Aim("wrong rows that a worker was given", "0", str(facts["num_blames"]), facts["num_blames"] == 0),
        Aim("defects in the logs", "0", str(facts["tracebacks"]), facts["tracebacks"] == 0),
        *(aim for name, trend in trends.items() for aim in _flat(name, trend)),
    ]
    checked = tally.count(End.RIGHT, End.WRONG, End.LOST)
    counts = [(name, str(num)) for name, num in sorted(faults.counts.items(), key=lambda item: -item[1])]
    counts += [("**faults of processes and lines**", f"**{faults.counts.total()}**")]
    counts += [(f"people: {name}", str(num)) for name, num in sorted(tally.manners.items())]
    counts += [
        ("answers checked", str(checked)),
        ("… left on purpose, right as far as read", str(tally.count(End.LEFT))),
        *((f"… ended with the error {code}", str(num)) for code, num in sorted(tally.errors.items())),
        ("connections taken up again", str(tally.num_come_back)),
        ("requests refused (503) and asked again", str(tally.num_refused)),
        ("tokens compared", str(tally.num_tokens)),
    ]
    return RowResult(
        name="soak",
        title=f"One fault a second for {effort.minutes:g} minutes",
        what=f"{NUM_NODES} nodes hold the model {NUM_NODES * LAYERS_EACH // 6} times, {NUM_ASKERS} people ask without a"
        " pause. Memory and open file handles are those of the coordinator's last life and of"
        f" {len(SURVIVORS)} agents that are never killed, a sample every {SAMPLE_EVERY_S:.0f} s, without the first"
        f" {100 * WARM_UP_SHARE:.0f} % of the time; finished answers are kept for {RETENTION_S:.0f} s here. Flat: over"
        f" the time watched the fitted line rises by less than {MAX_GROWTH_MB:.0f} MB or"
        f" {100 * MAX_GROWTH_SHARE:.0f} % of what is taken, whichever is more, and by less than"
        f" {MAX_NEW_HANDLES:.0f} handles.",
        command=f"python -m benchmarks.endurance soak --minutes {effort.minutes:g} --seed {effort.seed}",
        aims=tuple(aims),
        counts=(("what", "number"), *counts),
        raw={
            "faults": dict(faults.counts),
            "tally": msgspec.to_builtins(tally),
            "trends": msgspec.to_builtins(dict(trends)),
            **facts,
        },
    )


def _flat(name: str, trend: Trend) -> list[Aim]:
    hours = trend.seconds / 3600
    growth_mb, new_handles = trend.mb_per_hour * hours, trend.handles_per_hour * hours
    bound_mb = max(MAX_GROWTH_MB, MAX_GROWTH_SHARE * trend.first_mb)
    memory = (
        f"{trend.first_mb:.1f} → {trend.last_mb:.1f} MB in {trend.seconds / 60:.1f} min ({trend.mb_per_hour:+.1f} MB/h)"
    )
    handles = f"{trend.first_handles:.0f} → {trend.last_handles:.0f} ({trend.handles_per_hour:+.0f}/h)"
    return [
        Aim(f"memory of {name}", "flat", memory, growth_mb <= bound_mb),
        Aim(f"handles of {name}", "flat", handles, new_handles <= MAX_NEW_HANDLES),
    ]
