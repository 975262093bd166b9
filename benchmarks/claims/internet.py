"""What users of a pool over the internet see: the one row that cannot be measured on one machine.

    python -m benchmarks.claims internet --link 'decentllm://pool.example.org:8443/join?pin=...' --key KEY --model NAME

Start a pool (docs/operator.md), let volunteers join it, make a key (`decentllm-coordinator key`) and run this from
where users are. Nothing is changed in the pool; --seconds and --rate say how much it is asked. The answers stop where
the model stops, so lengths are at most what is asked for, and an answer that ends earlier counts as it is.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx
import msgspec

from benchmarks.claims.playing import BOUND
from benchmarks.claims.report import Kind, RowResult
from benchmarks.claims.scene import Load
from benchmarks.claims.users import Answer, Door, play, summarise
from protocol.join_link import JoinLink, parse_join_link
from shell.tls import CERTIFICATE_NAME, pinned_context

HTTPS_PORT = 443
LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class PoolOnTheInternet:
    """What to measure, and how much to ask of it. Empty `model`: the first that is ready."""

    link: str
    key: str
    model: str
    requests_per_s: float
    duration_s: float
    seed: int


def internet(pool: PoolOnTheInternet) -> RowResult:
    """Raises JoinLinkError for a bad link, httpx.HTTPError where the pool does not answer."""
    door = door_of(parse_join_link(pool.link), pool.model, pool.key)
    state = _state(door)
    door = replace(door, model=door.model or ready_model(state))
    load = Load(pool.requests_per_s, pool.duration_s)
    answers = [as_ended(answer) for answer in play(door, load.asks(pool.seed))]
    summary = summarise(answers, load.warm_up_s, load.duration_s, BOUND)
    num = f"{summary.num_asked}, {summary.num_whole}, {summary.num_in_bound}"
    tpot = f"{1000 * summary.mean_tpot_s:.0f} ms, {1000 * summary.p99_tpot_s:.0f} ms"
    rows = [
        ("measure", "seen"),
        ("model, nodes", f"{door.model}, {len(state['nodes'])}"),
        ("requests: asked, whole, in the bound", num),
        ("time to first token, mean", f"{summary.mean_ttft_s:.2f} s"),
        ("time per token, mean and p99", tpot),
        ("latency, mean and p99", f"{summary.mean_latency_s:.1f} s, {summary.p99_latency_s:.1f} s"),
        ("tokens/s in the bound", f"{summary.goodput_tokens_per_s:.1f}"),
    ]
    return RowResult(
        name="internet",
        kind=Kind.REAL,
        claim="A pool of volunteers' machines, joined by the internet, as its users see it.",
        found=f"{summary.num_in_bound} of {summary.num_asked} answers within the bound.",
        seed=pool.seed,
        table=tuple(rows),
        raw={"summary": msgspec.to_builtins(summary), "nodes": state["nodes"]},
    )


def door_of(link: JoinLink, model: str, key: str) -> Door:
    """A pool with a certificate of its own is trusted by the link's pin and by nothing else."""
    if not link.pin:
        return Door(link.url, model, key=key)
    parts = urlsplit(link.url)
    trust: ssl.SSLContext = asyncio.run(pinned_context(parts.hostname or "", parts.port or HTTPS_PORT, link.pin))
    return Door(link.url, model, trust, CERTIFICATE_NAME, key)


def as_ended(answer: Answer) -> Answer:
    """A model may stop before the length that was asked for: then the answer is whole as it is."""
    num_tokens = len(answer.token_times_s)
    is_short = not answer.error and 0 < num_tokens < answer.ask.num_answer_tokens
    return replace(answer, ask=replace(answer.ask, num_answer_tokens=num_tokens)) if is_short else answer


def _state(door: Door) -> dict[str, list[dict[str, str]]]:
    headers = {"Authorization": f"Bearer {door.key}"} if door.key else {}
    verify = True if door.trust is None else door.trust
    with httpx.Client(base_url=door.url, verify=verify, headers=headers, timeout=LIMIT_S) as client:
        answer = client.get("/pool", extensions=door.extensions).raise_for_status()
    state: dict[str, list[dict[str, str]]] = answer.json()
    return state


def ready_model(state: dict[str, list[dict[str, str]]]) -> str:
    """The first one that is served. Raises SystemExit with a sentence if there is none."""
    ready = [model["id"] for model in state["models"] if model["state"] == "ready"]
    if not ready:
        raise SystemExit("The pool serves no model now.")
    return ready[0]
