"""The coordinator is killed at random moments, some of them in the middle of a commit, while answers run and wait."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.endurance.asking import End, Manner
from benchmarks.endurance.crowd import Crowd, Tally
from benchmarks.endurance.pool import ToyPool, toy_pool
from benchmarks.endurance.report import Aim, RowResult
from benchmarks.endurance.toy_worker import KV_TOKENS_VARIABLE
from benchmarks.endurance.watching import percentile
from coordinator.journal import JOURNAL_NAME

NUM_ASKERS = 16
NUM_NODES = 4
LAYERS_EACH = 3
KV_TOKENS = 1200
"""Of each device: so few that some requests wait."""
MANNERS = {Manner.PATIENT: 8, Manner.DISCONNECTS: 1, Manner.CANCELS: 1}
STREAMING_LIMIT_S = 90.0
COMMIT_LIMIT_S = 3.0
WRITING = frozenset({18, 74, 75})
"""pwrite64, fsync and fdatasync on x86-64 (asm/unistd_64.h)."""
WAL_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24


class Moment(StrEnum):
    """When the coordinator is killed."""

    STARTING = "up to 1.5 s after it listens again (nodes and readers come back)"
    STREAMING = "while answers stream"
    COMMIT = "as soon as its journal is written to"


WEIGHTS = {Moment.STARTING: 1, Moment.STREAMING: 2, Moment.COMMIT: 2}


@dataclass
class Killed:
    """What was found at the kills."""

    moments: Counter[str] = field(default_factory=Counter)
    num_torn: int = 0
    """Kills that left a transaction in the write-ahead log without its commit."""
    num_delayed: int = 0
    num_streaming: int = 0
    """Sum over kills of answers of which something had been seen, and which were not complete."""
    num_waiting: int = 0
    resumed_s: list[float] = field(default_factory=list)
    """From when the coordinator listened to the next token that anybody saw."""


@dataclass
class Effort:
    num: int
    seed: int
    scratch: Path


def kills(effort: Effort) -> RowResult:
    """The row."""
    return asyncio.run(_kills(effort))


async def _kills(effort: Effort) -> RowResult:
    os.environ[KV_TOKENS_VARIABLE] = str(KV_TOKENS)
    async with toy_pool(effort.scratch / "kills") as pool:
        for number in range(NUM_NODES):
            await pool.add_node(f"node-{number}", LAYERS_EACH)
        await pool.until_serving(NUM_NODES)
        workers, num_loads = _workers(pool), pool.num_loads()
        crowd = Crowd(pool, NUM_ASKERS, MANNERS, effort.seed)
        crowd.open()
        began_s = time.monotonic()
        killed = await _kill_on(pool, crowd, effort)
        await crowd.close()
        facts = {
            "seconds": round(time.monotonic() - began_s),
            "loads_before": num_loads,
            "loads_after": pool.num_loads(),
            "same_workers": _workers(pool) == workers,
            "blames": pool.blames()[:5],
            "tracebacks": pool.tracebacks(),
        }
    return _result(effort, crowd.tally, killed, facts)


async def _kill_on(pool: ToyPool, crowd: Crowd, effort: Effort) -> Killed:
    draw, killed = random.Random(f"kills {effort.seed}"), Killed()
    for number in range(effort.num):
        (moment,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        await _wait_for(moment, draw, pool, crowd, killed)
        _look_around(crowd, killed)
        if moment is Moment.COMMIT:
            await asyncio.to_thread(kill_in_commit, pool.coordinator_pid, pool.folder / "pool" / JOURNAL_NAME)
        await pool.kill_coordinator()
        killed.moments[moment] += 1
        killed.num_torn += has_open_transaction(pool.folder / "pool" / f"{JOURNAL_NAME}-wal")
        if draw.random() < 0.2:
            killed.num_delayed += 1
            await asyncio.sleep(draw.uniform(0.5, 5.0))
        await pool.start_coordinator()
        print(f"kill {number + 1}: {moment.name.lower()}, torn {killed.num_torn}; {dict(crowd.tally.ends)}", flush=True)
    return killed


async def _wait_for(moment: Moment, draw: random.Random, pool: ToyPool, crowd: Crowd, killed: Killed) -> None:
    if moment is Moment.STARTING:
        await asyncio.sleep(draw.uniform(0.0, 1.5))
        return
    num_before = crowd.num_tokens()
    if await crowd.until(lambda _: crowd.num_tokens() > num_before, STREAMING_LIMIT_S):
        killed.resumed_s.append(time.monotonic() - pool.started_at_s)
    await asyncio.sleep(draw.uniform(0.0, 1.5))


def _look_around(crowd: Crowd, killed: Killed) -> None:
    killed.num_streaming += sum(bool(asker.tokens) for asker in crowd.running)
    killed.num_waiting += sum(not asker.tokens for asker in crowd.running)


def _workers(pool: ToyPool) -> list[list[int]]:
    return [node.worker_pids() for node in pool.nodes]


# ---------------------------------------------------------------- in the middle of a commit


def kill_in_commit(pid: int, journal: Path) -> bool:
    """SIGKILL as soon as the process writes to the journal; whether that came in time. Spins: run it in a thread."""
    wal = journal.with_name(f"{journal.name}-wal")
    until_s = time.monotonic() + COMMIT_LIMIT_S
    before = _changed_at(wal)
    while time.monotonic() < until_s:
        if _changed_at(wal) != before or _is_in_write(pid, wal):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return True
    return False


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _is_in_write(pid: int, path: Path) -> bool:
    """Whether a thread of it waits in a system call that writes that file."""
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            words = (task / "syscall").read_text().split()
            if words[0] != "running" and int(words[0]) in WRITING:
                return Path(f"/proc/{pid}/fd/{int(words[1], 16)}").readlink() == path.absolute()
    return False


def has_open_transaction(wal: Path) -> bool:
    """Whether the log ends with frames that no commit follows (sqlite.org/fileformat.html, section 4: a frame belongs
    to the log as long as its salts are the header's; a commit's last frame has the database's size)."""
    try:
        data = wal.read_bytes()
    except FileNotFoundError:
        return False
    if len(data) < WAL_HEADER_BYTES:
        return False
    page_bytes, salts = struct.unpack_from(">I", data, 8)[0], data[16:24]
    is_open, start = False, WAL_HEADER_BYTES
    while start + FRAME_HEADER_BYTES <= len(data) and data[start + 8 : start + 16] == salts:
        is_open = struct.unpack_from(">I", data, start + 4)[0] == 0
        start += FRAME_HEADER_BYTES + page_bytes
    return is_open


# ---------------------------------------------------------------- the row


def _result(effort: Effort, tally: Tally, killed: Killed, facts: dict[str, Any]) -> RowResult:
    num_wrong, num_lost = tally.count(End.WRONG), tally.count(End.LOST)
    num_loads = facts["loads_after"] - facts["loads_before"]
    p50, p99 = percentile(killed.resumed_s, 50), percentile(killed.resumed_s, 99)
    num_kills = killed.moments.total()
    aims = (
        Aim("answers changed, or with a token twice", "0", str(num_wrong), num_wrong == 0),
        Aim("answers lost", "0", str(num_lost), num_lost == 0),
        Aim("loads of weights after the first", "0", str(num_loads), num_loads == 0 and facts["same_workers"]),
        Aim("next token after it is back, p50 / p99", "under 5 s", f"{p50:.2f} / {p99:.2f} s", p99 < 5.0),
        Aim("defects in the logs", "0", str(facts["tracebacks"]), facts["tracebacks"] == 0),
    )
    counts = [("kills", str(num_kills)), *(("… " + name, str(num)) for name, num in sorted(killed.moments.items()))]
    counts += [
        ("… that left a transaction without its commit", str(killed.num_torn)),
        ("… after which it stayed away for 0.5 to 5 s", str(killed.num_delayed)),
        ("answers running / waiting at a kill, mean", _means(killed, num_kills)),
        ("answers checked", str(tally.count(End.RIGHT, End.WRONG, End.LOST))),
        ("… left on purpose, right as far as read", str(tally.count(End.LEFT))),
        ("connections taken up again", str(tally.num_come_back)),
        ("tokens compared", str(tally.num_tokens)),
    ]
    return RowResult(
        name="kills",
        title=f"The coordinator is killed {num_kills} times",
        what=f"{NUM_NODES} nodes hold the model twice; {NUM_ASKERS} people ask all the time, more than there is room"
        " for. The coordinator gets SIGKILL at moments drawn by seed and is started again; clients read on with"
        " `Last-Event-ID`, nodes come back by themselves.",
        command=f"python -m benchmarks.endurance kills --num {effort.num} --seed {effort.seed}",
        aims=aims,
        counts=(("what", "number"), *counts),
        raw={"killed": msgspec.to_builtins(killed), "tally": msgspec.to_builtins(tally), **facts},
    )


def _means(killed: Killed, num_kills: int) -> str:
    each = max(1, num_kills)
    return f"{killed.num_streaming / each:.1f} / {killed.num_waiting / each:.1f}"
