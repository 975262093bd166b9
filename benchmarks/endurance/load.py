"""What one coordinator holds: streams at once, and connected nodes that all come back when it was restarted."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.endurance import toy_model
from benchmarks.endurance.light_nodes import LightNode, Stage, first_digest, next_token
from benchmarks.endurance.pool import ToyPool, toy_pool
from benchmarks.endurance.report import Aim, RowResult
from benchmarks.endurance.sse import Broken, request
from benchmarks.endurance.watching import MB, cpu_s, num_handles, percentile, rss_bytes
from tests.simulation.model import NUM_LAYERS

HOLD_S = 60.0
SETTLE_S = 300.0
STREAMS_RAMP_S = 10.0
JOINS_PER_S = 200.0
PROBE_EVERY_S = 0.5
PINGS_EACH_TIME = 20
NUM_STREAM_NODES = 4


@dataclass
class Effort:
    num: int
    seconds: float
    scratch: Path
    tokens_per_s: float = 4.0
    """Of each stream."""


@dataclass
class Stream:
    """One answer, and when its tokens came."""

    content: str
    num_tokens: int
    asked_at_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    seen_at_s: list[float] = field(default_factory=list)
    why: str = ""

    async def run(self, port: int) -> None:
        body = {
            "model": toy_model.NAME, "messages": [{"role": "user", "content": self.content}], "temperature": 0,
            "max_tokens": self.num_tokens, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        self.asked_at_s = time.monotonic()
        try:
            response = await request(port, "POST", "/v1/chat/completions", body)
        except Broken as error:
            self.why = str(error)
            return
        try:
            await self._read(response)
        except Broken as error:
            self.why = str(error)
        finally:
            response.close()

    async def _read(self, response: Any) -> None:
        if response.status != 200:
            self.why = f"status {response.status}: {(await response.body())[:200]!r}"
            return
        async for line in response.lines():
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:]).get("choices", ()):
                    new = choice.get("token_ids", ())
                    self.tokens += new
                    self.seen_at_s += [time.monotonic()] * len(new)

    def is_right(self, prompt: Sequence[int]) -> bool:
        digest, wanted = first_digest(prompt), []
        for _ in range(self.num_tokens):
            token, digest = next_token(digest)
            wanted.append(token)
        return self.tokens == wanted


@dataclass
class Meter:
    """The coordinator's processor time, memory and answers to a small request, while something goes on."""

    pool: ToyPool
    api_s: list[float] = field(default_factory=list)
    num_api_failures: int = 0
    rss_mb: float = 0.0
    handles: int = 0
    cpu_share: float = 0.0

    async def run(self, seconds: float) -> None:
        """For so long."""
        began_s, before_s = time.monotonic(), cpu_s(self.pool.coordinator_pid)
        while time.monotonic() < began_s + seconds:
            await self.probe()
            await asyncio.sleep(PROBE_EVERY_S)
        pid = self.pool.coordinator_pid
        self.cpu_share = (cpu_s(pid) - before_s) / (time.monotonic() - began_s)
        self.rss_mb, self.handles = rss_bytes(pid) / MB, num_handles(pid)

    async def probe(self) -> None:
        asked_s = time.monotonic()
        try:
            response = await request(self.pool.port, "GET", "/v1/models")
            await response.body()
            response.close()
        except Broken:
            self.num_api_failures += 1
        else:
            self.api_s.append(time.monotonic() - asked_s)


def raise_handle_limit() -> int:
    """As many open files as this process and its children may have at all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# ---------------------------------------------------------------- streams


def streams(effort: Effort) -> RowResult:
    """The row."""
    raise_handle_limit()
    return asyncio.run(_streams(effort))


async def _streams(effort: Effort) -> RowResult:
    async with toy_pool(effort.scratch / "streams") as pool:
        stage = Stage(1.0 / effort.tokens_per_s)
        nodes = [LightNode(number, pool.port, stage) for number in range(NUM_STREAM_NODES)]
        living = [asyncio.create_task(node.live()) for node in nodes]
        await pool.until_serving(NUM_STREAM_NODES)
        num_tokens = int((effort.seconds + 2 * STREAMS_RAMP_S) * effort.tokens_per_s)
        asked = [Stream(f"stream {number}", num_tokens) for number in range(effort.num)]
        running = [
            asyncio.create_task(_later(stream, pool.port, number, effort.num)) for number, stream in enumerate(asked)
        ]
        await asyncio.sleep(STREAMS_RAMP_S)
        meter, num_before = Meter(pool), sum(len(stream.tokens) for stream in asked)
        await meter.run(effort.seconds)
        tokens_per_s = (sum(len(stream.tokens) for stream in asked) - num_before) / effort.seconds
        num_held = sum(not task.done() for task in running)
        await asyncio.gather(*running)
        await _end(living)
        num_lost_nodes = sum(node.num_losses for node in nodes)
    held = Held(num_held, tokens_per_s, num_lost_nodes)
    return _streams_row(effort, asked, stage, pool, meter, held)


@dataclass(frozen=True)
class Held:
    """While the coordinator was watched."""

    num_streams: int
    tokens_per_s: float
    num_lost_nodes: int


async def _later(stream: Stream, port: int, number: int, num: int) -> None:
    await asyncio.sleep(STREAMS_RAMP_S * number / num * 0.8)
    await stream.run(port)


def _streams_row(
    effort: Effort, asked: list[Stream], stage: Stage, pool: ToyPool, meter: Meter, held: Held
) -> RowResult:
    right = [stream for stream in asked if stream.is_right(pool.oracle.prompt(stream.content))]
    first_s = [stream.seen_at_s[0] - stream.asked_at_s for stream in asked if stream.seen_at_s]
    added_s = [late_s for stream in asked for late_s in _added(stream, stage, pool)]
    per_token_ms = 1000 * meter.cpu_share / max(1.0, held.tokens_per_s)
    aims = (
        Aim(
            f"streams held at once for {effort.seconds:.0f} s",
            str(effort.num),
            str(held.num_streams),
            held.num_streams == effort.num,
        ),
        Aim("answers right", str(effort.num), str(len(right)), len(right) == effort.num),
        Aim("nodes declared lost falsely", "0", str(held.num_lost_nodes), held.num_lost_nodes == 0),
    )
    counts = (
        ("what", "found"),
        (
            "tokens per second that came, of those that nodes would say on a machine of their own",
            f"{held.tokens_per_s:.0f} of {effort.num * effort.tokens_per_s:.0f}",
        ),
        ("coordinator: share of a core", f"{100 * meter.cpu_share:.0f} % ({per_token_ms:.2f} ms a token)"),
        ("coordinator: memory, open handles", f"{meter.rss_mb:.0f} MB, {meter.handles}"),
        ("time to first token without any computing, p50 / p99", _ms(first_s)),
        ("added to each token (node to client), p50 / p99", _ms(added_s)),
        ("GET /v1/models meanwhile, p50 / p99", _ms(meter.api_s)),
        ("machine: load average", _load()),
    )
    return RowResult(
        name="streams",
        title=f"{effort.num} streams at once",
        what=f"One coordinator; {NUM_STREAM_NODES} simulated nodes, which speak the real protocol from another process,"
        f" say a token of each session every {1000 / effort.tokens_per_s:.0f} ms. Added is the time from when a node"
        " has said a token until the client has read it (one clock).",
        command=f"python -m benchmarks.endurance streams --num {effort.num} --seconds {effort.seconds:g}"
        f" --rate {effort.tokens_per_s:g}",
        aims=aims,
        counts=counts,
        raw={"whys": dict(Counter(stream.why for stream in asked if stream.why)), "cpu_share": meter.cpu_share},
    )


def _added(stream: Stream, stage: Stage, pool: ToyPool) -> list[float]:
    sent_at_s = stage.sent_at_s.get(pool.oracle.prompt(stream.content), [])
    return [seen_s - sent_s for seen_s, sent_s in zip(stream.seen_at_s, sent_at_s, strict=False)]


# ---------------------------------------------------------------- nodes


@dataclass
class Herd:
    """What was found of the nodes."""

    joined_s: float = 0.0
    ping_s: list[float] = field(default_factory=list)
    num_lost: int = 0
    late_s: list[float] = field(default_factory=list)
    back_s: float = 0.0
    num_back: int = 0
    num_refused: int = 0
    num_loads: int = 0


def nodes(effort: Effort) -> RowResult:
    """The row."""
    raise_handle_limit()
    return asyncio.run(_nodes(effort))


async def _nodes(effort: Effort) -> RowResult:
    async with toy_pool(effort.scratch / "nodes") as pool:
        crowd = [LightNode(number, pool.port, Stage()) for number in range(effort.num)]
        herd, began_s = Herd(), time.monotonic()
        living = [asyncio.create_task(node.live(number / JOINS_PER_S)) for number, node in enumerate(crowd)]
        await _until_in(crowd, SETTLE_S)
        herd.joined_s = time.monotonic() - began_s
        held = await _hold(pool, crowd, herd, effort.seconds)
        back = await _restart(pool, crowd, herd)
        await _end(living)
    return _nodes_row(effort, herd, held, back)


async def _hold(pool: ToyPool, crowd: list[LightNode], herd: Herd, seconds: float) -> Meter:
    """Nothing happens for so long but heartbeats."""
    num_losses = sum(node.num_losses for node in crowd)
    for node in crowd:
        node.late_s.clear()
    meter, pinging = Meter(pool), asyncio.create_task(_ping(crowd, herd))
    await meter.run(seconds)
    pinging.cancel()
    await asyncio.gather(pinging, return_exceptions=True)
    herd.num_lost = sum(node.num_losses for node in crowd) - num_losses
    herd.late_s = [late_s for node in crowd for late_s in node.late_s]
    return meter


async def _ping(crowd: list[LightNode], herd: Herd) -> None:
    """Round trips to the coordinator's loop: a heartbeat waits there for half as long."""
    at = 0
    while True:
        some = [crowd[(at + step) % len(crowd)] for step in range(PINGS_EACH_TIME)]
        at += PINGS_EACH_TIME
        herd.ping_s += await asyncio.gather(*(node.socket.ping() for node in some if node.socket is not None))
        await asyncio.sleep(PROBE_EVERY_S)


async def _restart(pool: ToyPool, crowd: list[LightNode], herd: Herd) -> Meter:
    """The coordinator is killed; all come back at once."""
    num_refused, num_loads = sum(n.num_refused for n in crowd), sum(n.num_loads for n in crowd)
    before = [node.num_welcomes for node in crowd]
    await pool.kill_coordinator()
    await pool.start_coordinator()
    meter = Meter(pool)
    probing = asyncio.create_task(meter.run(SETTLE_S))
    began_s = time.monotonic()
    while time.monotonic() < began_s + SETTLE_S:
        herd.num_back = sum(node.num_welcomes > num for node, num in zip(crowd, before, strict=True))
        if herd.num_back == len(crowd):
            break
        await asyncio.sleep(0.05)
    herd.back_s = time.monotonic() - began_s
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    herd.num_refused = sum(n.num_refused for n in crowd) - num_refused
    herd.num_loads = sum(n.num_loads for n in crowd) - num_loads
    return meter


async def _until_in(crowd: list[LightNode], limit_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while any(node.num_welcomes <= node.num_losses for node in crowd):
                await asyncio.sleep(0.1)


async def _end(living: list[asyncio.Task[None]]) -> None:
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)


def _nodes_row(effort: Effort, herd: Herd, held: Meter, back: Meter) -> RowResult:
    api_p99_s = percentile(back.api_s, 99)
    aims = (
        Aim(f"idle nodes held for {effort.seconds:.0f} s, lost falsely", "0", str(herd.num_lost), herd.num_lost == 0),
        Aim("nodes back after a restart", str(effort.num), str(herd.num_back), herd.num_back == effort.num),
        Aim("… all of them, from when it listens", "under 60 s", f"{herd.back_s:.1f} s", herd.back_s < 60.0),
        Aim("… weights loaded anew", "0", str(herd.num_loads), herd.num_loads == 0),
        Aim("… GET /v1/models meanwhile, p99", "under 500 ms", f"{1000 * api_p99_s:.0f} ms", api_p99_s < 0.5),
    )
    counts = (
        ("what", "found"),
        (f"until all had joined for the first time ({JOINS_PER_S:.0f}/s begin)", f"{herd.joined_s:.1f} s"),
        ("coordinator: share of a core, a heartbeat per node and second", f"{100 * held.cpu_share:.0f} %"),
        ("coordinator: memory, open handles", f"{held.rss_mb:.0f} MB, {held.handles}"),
        ("round trip of a ping to the coordinator, p50 / p99", _ms(herd.ping_s)),
        ("heartbeats sent late by the players themselves, p50 / p99", _ms(herd.late_s)),
        ("GET /v1/models while they are idle, p50 / p99", _ms(held.api_s)),
        ("GET /v1/models while all come back, p50 / p99; failed", f"{_ms(back.api_s)}; {back.num_api_failures}"),
        ("connections turned away for the moment while all come back (503)", str(herd.num_refused)),
        ("machine: load average", _load()),
    )
    return RowResult(
        name="nodes",
        title=f"{effort.num:,} connected nodes",
        what="One coordinator; simulated nodes, each with an address, a key and a connection of its own, enrolled,"
        " measured and assigned, that send their heartbeats. Then the coordinator is killed and started again, and all"
        " come back by the agent's own rule for when to try again.",
        command=f"python -m benchmarks.endurance nodes --num {effort.num} --seconds {effort.seconds:g}",
        aims=aims,
        counts=counts,
        raw={"num_layers": NUM_LAYERS, "ping_max_s": max(herd.ping_s, default=0.0)},
    )


def _ms(values: Sequence[float]) -> str:
    return f"{1000 * percentile(values, 50):.1f} / {1000 * percentile(values, 99):.1f} ms"


def _load() -> str:
    return Path("/proc/loadavg").read_text().split()[0]
