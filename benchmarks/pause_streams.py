"""A volunteer pauses in the middle of twenty answers: is one of them broken or changed?

    python -m benchmarks.pause_streams --models models --write

Two nodes, each with the whole model (float32, CPU); twenty greedy answers with different questions stream at once. Each
is first asked alone, undisturbed: that is the reference. In the middle one of the two nodes is paused as a click
pauses it; the answers that ran there have to go on on the other one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.attached_agent import AttachedAgent, wait_ended
from benchmarks.machine import describe_machine
from client.status import AgentState, Pause
from demo.local_pool import LocalPool, local_pool

MODEL = "gemma-3-270m"
NUM_STREAMS = 20
NUM_TOKENS = 40
TABLE = Path("docs/pause-streams.md")


@dataclass
class Stream:
    """One answer as it came."""

    number: int
    tokens: list[int] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    error: str = ""
    longest_gap_s: float = 0.0

    def run(self, pool: LocalPool) -> None:
        messages = [{"role": "user", "content": f"Once upon a time there was a king with {self.number} daughters and"}]
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": NUM_TOKENS, "stream": True}
        body["return_token_ids"] = True
        with httpx.stream("POST", f"{pool.url}/v1/chat/completions", json=body, timeout=300) as response:
            last_s = 0.0
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    last_s = self._take(json.loads(line[6:]), last_s)

    def _take(self, event: dict[str, object], last_s: float) -> float:
        if "error" in event:
            self.error = str(event["error"])
            return last_s
        extra, choices = event.get("decentllm"), event.get("choices")
        if isinstance(extra, dict) and "nodes" in extra:
            self.chains.append(" -> ".join(node["name"] for node in extra["nodes"]))
        token_ids = choices[0].get("token_ids") if isinstance(choices, list) and choices else None
        if not token_ids:
            return last_s
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - last_s if last_s else 0.0)
        self.tokens += token_ids
        return now_s


@dataclass(frozen=True)
class Outcome:
    num_moved: int
    num_broken: int
    num_changed: int
    num_running: int
    free_s: float
    longest_gap_s: float


def references(pool: LocalPool) -> list[list[int]]:
    """Each answer alone."""
    streams = [Stream(number) for number in range(NUM_STREAMS)]
    for stream in streams:
        stream.run(pool)
    return [stream.tokens for stream in streams]


def paused_in_the_middle(pool: LocalPool, agent: AttachedAgent, expected: list[list[int]]) -> Outcome:
    streams = [Stream(number) for number in range(NUM_STREAMS)]
    threads = [threading.Thread(target=stream.run, args=(pool,)) for stream in streams]
    for thread in threads:
        thread.start()
    while sum(len(stream.tokens) for stream in streams) < NUM_STREAMS * NUM_TOKENS // 3:
        time.sleep(0.01)
    pids, num_running = agent.last.worker_pids, sum(1 for s in streams if 0 < len(s.tokens) < NUM_TOKENS)
    at_s = agent.send(Pause())
    free_s = wait_ended(pids) - at_s
    for thread in threads:
        thread.join()
    return Outcome(
        num_moved=sum(1 for stream in streams if len(stream.chains) > 1),
        num_broken=sum(1 for stream in streams if stream.error or len(stream.tokens) < len(expected[stream.number])),
        num_changed=sum(1 for stream in streams if stream.tokens != expected[stream.number]),
        num_running=num_running,
        free_s=free_s,
        longest_gap_s=max(stream.longest_gap_s for stream in streams),
    )


def measure(models: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        options = ("--cpu", "--pause-mode", "always", "--max-memory", "5GB")
        with (
            local_pool(scratch / "pool", [str(models / MODEL)]) as pool,
            AttachedAgent(pool.url, scratch / "volunteer", "--name", "volunteer", *options) as agent,
        ):
            agent.wait_for(AgentState.SERVING)
            pool.add_node("replica", *options)
            pool.wait_until(lambda state: [n["state"] for n in state["nodes"]] == ["serving"] * 2, 600)
            return paused_in_the_middle(pool, agent, references(pool))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    outcome = measure(arguments.models)
    text = table(outcome)
    print(text)
    if arguments.write:
        TABLE.write_text(_page(text), encoding="utf-8")
    return int(bool(outcome.num_broken or outcome.num_changed))


def table(outcome: Outcome) -> str:
    rows = [
        ("measure", "seen", "aim"),
        ("---", "---", "---"),
        ("answers running when the volunteer paused", f"{outcome.num_running} of {NUM_STREAMS}", ""),
        ("answers that moved to the other node", str(outcome.num_moved), ""),
        ("answers broken", str(outcome.num_broken), "0"),
        ("answers changed", str(outcome.num_changed), "0"),
        ("pause click to the worker's end", f"{outcome.free_s:.2f} s", "under 2 s"),
        ("longest gap in any stream", f"{outcome.longest_gap_s:.1f} s", "reported"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _page(text: str) -> str:
    return f"""# A pause in the middle of twenty answers

{MODEL}, float32, greedy, {NUM_TOKENS} tokens each, two nodes that each hold the whole model.
{describe_machine()}.
Command: `python -m benchmarks.pause_streams --write`.

{text}

Two cores compute twenty answers here, so that every step is slow; the gap is the replay of prompt and tokens of the
moved answers beside the steps of all others.
"""


if __name__ == "__main__":
    sys.exit(main())
