"""Rows "network-...": machines of their own in an emulated network; each fault at each moment."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.network import Link, Network, Topology
from benchmarks.recovery.effort import Effort
from benchmarks.recovery.faults import Fault
from benchmarks.recovery.killing import LONG_QUESTION, QUESTION
from benchmarks.recovery.pools import NUM_LAYERS, POOL, Rig, rig_in
from benchmarks.recovery.report import Aim, RecoveryRow
from benchmarks.recovery.trials import Known, Moment, NothingToDo, Trial, learn, total, trial

_logger = logging.getLogger(__name__)
NAMES = ("one", "two", "three", "four")
LAN = Link(delay_s=0.0005)
LINKS: Mapping[str, Link] = {
    "lan": LAN,
    "80ms": Link(delay_s=0.040, loss=0.01),
    "200ms": Link(delay_s=0.100, loss=0.01),
}
"""One way, so that a round trip takes twice the delay."""
NAMES_OF_LINKS = {"lan": "a LAN", "80ms": "80 ms and 1 % loss", "200ms": "200 ms and 1 % loss"}
FAULTS = (Fault.KILL_WORKER, Fault.STOP_WORKER, Fault.CABLE, Fault.PAIR)
NUM_TOKENS = 24


def network(links: str, effort: Effort) -> RecoveryRow:
    """Each fault at each moment, all over this kind of links."""
    rng = random.Random(effort.seed)
    topology = Topology((POOL, *NAMES), usual_link=LAN)
    folder = effort.scratch / "network"
    with Network(topology, effort.seed) as emulated:
        _fetch_all(emulated, folder, effort)
        with rig_in(emulated, folder, effort.model, NAMES, "--max-layers", str(NUM_LAYERS // 2)) as made:
            for first, second in topology.pairs():
                emulated.set_link(first, second, LINKS[links], both=False)
            trials = _trials(made, effort, rng)
    tally = total(trials)
    gaps = [each.found.gap_s for each in trials if each.found is not None]
    measure = f"network faults over {NAMES_OF_LINKS[links]}: answers lost, duplicated or changed"
    return RecoveryRow(
        name=f"network-{links}",
        what=f"Coordinator and four nodes on machines of their own, joined by {NAMES_OF_LINKS[links]} (namespaces"
        " and a switch); every fault while the prompt is computed, while tokens come, and while the answer is handed"
        " over because another node leaves.",
        aims=(Aim(measure, "0", f"{tally.num_wrong} of {tally.num_answers}", tally.num_wrong == 0),),
        tally=tally,
        table=_table(trials),
        raw={"longest_gap_s": max(gaps, default=0.0), "trials": [_raw(each) for each in trials]},
    )


def _fetch_all(emulated: Network, folder: Path, effort: Effort) -> None:
    """All nodes download all layers first, over good links: a node that comes back may be given others, and over a bad
    line it would take half an hour to get them. What an earlier row has fetched is there."""
    if not folder.exists():
        with rig_in(emulated, folder, effort.model, NAMES):
            pass


def _trials(made: Rig, effort: Effort, rng: random.Random) -> list[Trial]:
    short, long = learn(made, QUESTION, NUM_TOKENS), learn(made, 2 * LONG_QUESTION, NUM_TOKENS)
    known = {Moment.PREFILL: long, Moment.DECODE: short, Moment.HAND_OVER: short}
    cells = [(fault, moment) for fault in FAULTS[: effort.most(len(FAULTS))] for moment in Moment]
    return [each for fault, moment in cells for each in _tried(made, known[moment], fault, moment, rng)]


def _tried(made: Rig, known: Known, fault: Fault, moment: Moment, rng: random.Random) -> list[Trial]:
    try:
        return [trial(made, known, fault, moment, rng)]
    except NothingToDo:
        _logger.warning("%s in %s: no node can be spared", fault, moment)
        made.make_whole()
        return []


def _table(trials: Sequence[Trial]) -> tuple[tuple[str, ...], ...]:
    rows: list[tuple[str, ...]] = [("fault", "in", "tokens before", "time to next token", "usual", "answer")]
    for each in trials:
        found, fate = each.found, each.fate
        times = ("not hit", "") if found is None else (f"{found.gap_s:.2f} s", f"{found.usual_s:.2f} s")
        rows.append((each.fault, each.moment, str(each.hit_at), *times, fate))
    return tuple(rows)


def _raw(each: Trial) -> dict[str, object]:
    found = msgspec.to_builtins(each.found)
    return {"fault": each.fault, "moment": each.moment, "hit_at": each.hit_at, "fate": each.fate, "found": found}
