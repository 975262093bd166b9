"""How soon the volunteer gets the GPU back, how soon it serves again, and what serving costs in energy. Needs a GPU.

    python -m benchmarks.pause --models models --write

A real coordinator, agent and worker; the model is a random one of Qwen3-4B's shape in bfloat16, eight answers run all
the time. "Free" is when the worker's process has ended and NVML lists no memory of it. "The game" is
`benchmarks.game`: its reference is the same program alone on the card, in the same run. Clicks are the lines that the
tray app sends.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pynvml

from benchmarks.attached_agent import AttachedAgent, wait_ended
from benchmarks.machine import describe_machine
from benchmarks.synthetic import QWEN3_4B, make_folder
from client.status import AgentState, Pause, Resume
from demo.local_pool import ROOT, LocalPool, local_pool

TOKENIZER = "qwen2.5-coder-0.5b-instruct"
MODEL = "qwen3-4b-shape"
TABLE = Path("docs/pause.md")
GAME_S = 8.0
SLOWDOWN_S = 5.0
NUM_STREAMS = 8


@dataclass
class Figures:
    """Seconds, one entry per round."""

    game_to_free: list[float] = field(default_factory=list)
    frames_kept: list[float] = field(default_factory=list)
    click_to_free: list[float] = field(default_factory=list)
    resume_to_serving: list[float] = field(default_factory=list)
    resume_parts: list[dict[str, float]] = field(default_factory=list)
    joules: dict[int, float] = field(default_factory=dict)
    tokens_per_s: dict[int, float] = field(default_factory=dict)


class Card:
    """What NVML says of the first GPU."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    @property
    def name(self) -> str:
        return str(pynvml.nvmlDeviceGetName(self._handle))

    def holds(self, pids: Sequence[int]) -> bool:
        listed = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)}
        return bool(listed & set(pids))

    def joules(self) -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def wait_free(self, pids: tuple[int, ...]) -> float:
        """When the card held nothing of these processes any more."""
        wait_ended(pids)
        while self.holds(pids):
            time.sleep(0.005)
        return time.monotonic()


class Load:
    """Answers that run all the time; one that is cut off is asked again."""

    def __init__(self, url: str, num_streams: int) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.num_tokens = 0
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(num_streams)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        while not self._is_over.is_set():
            try:
                self._ask(number)
            except httpx.HTTPError:
                self._is_over.wait(0.5)

    def _ask(self, number: int) -> None:
        messages = [{"role": "user", "content": f"Tell story number {number}."}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 4000, "stream": True, "return_token_ids": True}
        with httpx.stream("POST", self._url, json=body, timeout=60) as response:
            for line in response.iter_lines():
                if self._is_over.is_set():
                    return
                if line.startswith("data: {"):
                    self._count(json.loads(line[6:]))

    def _count(self, event: dict[str, list[dict[str, list[int]]]]) -> None:
        with self._lock:
            self.num_tokens += sum(len(choice.get("token_ids", ())) for choice in event.get("choices", ()))

    def wait_running(self) -> None:
        """Until tokens flow."""
        before = self.num_tokens
        while self.num_tokens < before + 4 * NUM_STREAMS:
            time.sleep(0.02)


def play(seconds: float) -> list[float]:
    """The game from start to end; when each frame was done."""
    argv = [sys.executable, "-m", "benchmarks.game", "--seconds", str(seconds)]
    answer = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(line) for line in answer.stdout.split()]


def frame_rate(frames_s: Sequence[float], span_s: float) -> float:
    """Frames per second in the first `span_s` after the first."""
    return sum(1 for at_s in frames_s[1:] if at_s <= frames_s[0] + span_s) / span_s


def game_round(agent: AttachedAgent, card: Card, alone_fps: float, figures: Figures) -> None:
    """The game starts while the node serves; the node has to notice by itself."""
    pids = agent.last.worker_pids
    freed: list[float] = []
    watcher = threading.Thread(target=lambda: freed.append(card.wait_free(pids)))
    watcher.start()
    frames = play(GAME_S)
    watcher.join()
    figures.game_to_free.append(freed[0] - frames[0])
    figures.frames_kept.append(frame_rate(frames, SLOWDOWN_S) / alone_fps)
    agent.wait_for(AgentState.PAUSED, since_s=freed[0] - 5)
    resume(agent, Resume(anyway=True))


def click_round(agent: AttachedAgent, card: Card, figures: Figures) -> None:
    """Pause, then resume, by the volunteer's hand."""
    pids = agent.last.worker_pids
    at_s = agent.send(Pause())
    figures.click_to_free.append(card.wait_free(pids) - at_s)
    agent.wait_for(AgentState.PAUSED, since_s=at_s)
    total_s, parts = resume(agent, Resume())
    figures.resume_to_serving.append(total_s)
    figures.resume_parts.append(parts)


def resume(agent: AttachedAgent, command: Resume) -> tuple[float, dict[str, float]]:
    """Seconds until it serves again, and how long it was in each state on the way."""
    at_s = agent.send(command)
    end = agent.wait_for(AgentState.SERVING, since_s=at_s)
    parts: dict[str, float] = {}
    steps = [seen for seen in agent.seen if at_s <= seen.at_s <= end.at_s and seen.status.state != AgentState.PAUSED]
    before_s = at_s
    for seen, following in itertools.pairwise(steps):
        parts[seen.status.state] = parts.get(seen.status.state, 0.0) + following.at_s - before_s
        before_s = following.at_s
    return end.at_s - at_s, parts


def energy(pool: LocalPool, card: Card, num_streams: int, figures: Figures, seconds: float) -> None:
    with Load(pool.url, num_streams) as load:
        load.wait_running()
        joules, tokens, at_s = card.joules(), load.num_tokens, time.monotonic()
        time.sleep(seconds)
        num_tokens = load.num_tokens - tokens
        figures.joules[num_streams] = 1e3 * (card.joules() - joules) / num_tokens
        figures.tokens_per_s[num_streams] = num_tokens / (time.monotonic() - at_s)


@contextlib.contextmanager
def serving_node(scratch: Path, models: Path) -> Iterator[tuple[LocalPool, AttachedAgent]]:
    folder = make_folder(scratch / MODEL, models / TOKENIZER, QWEN3_4B, "cuda")
    with (
        local_pool(scratch / "pool", [str(folder)]) as pool,
        AttachedAgent(pool.url, scratch / "node", "--name", "volunteer") as agent,
    ):
        agent.wait_for(AgentState.SERVING)
        yield pool, agent


def measure(scratch: Path, models: Path, num_rounds: int, seconds: float) -> Figures:
    figures, card = Figures(), Card()
    alone_fps = frame_rate(play(GAME_S), SLOWDOWN_S)
    print(f"the game alone: {alone_fps:.1f} frames/s", flush=True)
    with serving_node(scratch, models) as (pool, agent):
        for num_streams in (1, 16):
            energy(pool, card, num_streams, figures, seconds)
        with Load(pool.url, NUM_STREAMS) as load:
            for number in range(num_rounds):
                load.wait_running()
                click_round(agent, card, figures)
                load.wait_running()
                game_round(agent, card, alone_fps, figures)
                print(f"round {number + 1}: {figures.click_to_free[-1]:.2f} s, {figures.game_to_free[-1]:.2f} s")
    return figures


def table(figures: Figures) -> str:
    def spread(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} s / {max(values):.2f} s"

    kept = [100 * (1 - share) for share in figures.frames_kept]
    parts = {name for step in figures.resume_parts for name in step}
    split = ", ".join(
        f"{name} {statistics.median([step.get(name, 0.0) for step in figures.resume_parts]):.1f} s"
        for name in sorted(parts)
    )
    energy_row = ", ".join(
        f"{n} stream{'s' if n > 1 else ''}: {joules:,.0f} J ({figures.tokens_per_s[n]:.0f} tokens/s)"
        for n, joules in figures.joules.items()
    )
    rows = [
        ("measure", "median / worst", "aim"),
        ("---", "---", "---"),
        ("the game's first kernel to free memory", spread(figures.game_to_free), "4 s / 6 s"),
        (
            f"the game's slowdown in its first {SLOWDOWN_S:.0f} s",
            f"{statistics.median(kept):.0f} % / {max(kept):.0f} %",
            "reported",
        ),
        ("pause click to free memory", spread(figures.click_to_free), "under 2 s"),
        (
            "resume click to serving, weights on disk",
            f"{spread(figures.resume_to_serving)} (medians: {split})",
            "reported",
        ),
        ("energy per 1,000 tokens", energy_row, "reported"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models (tokenizer)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each energy measurement")
    parser.add_argument("--scratch", type=Path, default=None, help="where 20 GB may be written (default: temporary)")
    parser.add_argument("--out", type=Path, default=None, help="also write the raw figures there, as JSON")
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        figures = measure(scratch, arguments.models, arguments.rounds, arguments.seconds)
    text = f"{Card().name}; {describe_machine()}.\n\n{table(figures)}\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(vars(figures), indent=1))
    if arguments.write:
        TABLE.write_text(_page(text, arguments.rounds), encoding="utf-8")
    return 0


def _page(text: str, num_rounds: int) -> str:
    return f"""# How soon the GPU is yours again

A node that serves {NUM_STREAMS} answers with a model of Qwen3-4B's shape (random weights, bfloat16); {num_rounds}
rounds.
Command: `python -m benchmarks.pause --write`.
{text}
The game is `benchmarks/game.py`, which takes 2 GiB and computes without a pause; its reference ran alone on the card in
the same run. Free means: the worker's process has ended and NVML lists no memory of it.
"""


if __name__ == "__main__":
    sys.exit(main())
