"""How soon the volunteer gets the GPU back, how soon it serves again, and what serving costs in energy. Needs a GPU.

    python -m benchmarks.pause --models models --write

A real coordinator, agent and worker; the model is a random one of Qwen3-4B's shape in bfloat16, eight answers run all
the time. The game is started again while the worker does nothing but read long prompts, which fills the GPU as answers
do not. "Free" is when the worker's process has ended and the card's memory in use is what it was without it. "The
game" is `benchmarks.game`: its reference is the same program alone on the card, in the same run. Clicks are the lines
that the tray app sends.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pynvml

from benchmarks.attached_agent import AttachedAgent, wait_ended
from benchmarks.machine import describe_machine
from benchmarks.synthetic import QWEN3_4B, make_folder
from client.status import AgentState, Pause, Resume
from demo.local_pool import ROOT, LocalPool, local_pool
from protocol.pause import PauseReason

TOKENIZER = "qwen2.5-coder-0.5b-instruct"
MODEL = "qwen3-4b-shape"
TABLE = Path("docs/pause.md")
GAME_S = 6.0
SLOWDOWN_S = 5.0
GAME_BYTES = 4 * 2**30
"""No more than this is the game's: 2 GiB, and what CUDA takes for itself."""
SLACK_BYTES = 2**28
NUM_STREAMS = 8
NOT_MEASURED = "not measured"
NOTES = """## Where the time goes

Profiled on the H100 (driver 580.159.04) on 2026-11-22, with a time stamp for every reading, in two
runs on the same machine: first the rounds with answers, then those with long prompts.

- **The game**: a reading shows it 0.3 to 0.8 s after its first kernel, the next one, half a second later, confirms it.
  The process is gone 3 ms after that decision; the driver gives its memory back within another 0.13 to 0.22 s. The
  worker's own use was 5 to 15 % of the GPU's time while it wrote answers and 15 to 60 % while it read prompts; NVML
  never ascribed any of it to another process.
- **Resuming** is nearly all the start of the worker's Python: importing torch and transformers took 4.7 s and the
  worker's own modules, with what transformers imports for them, 6.5 s; CUDA answered after 0.3 s. There are no CUDA
  graphs to capture yet.
- **Energy**: the card drew about 135 W with one stream as with sixteen, so the joules per token are the slowness of
  one step: a layer takes 1.6 ms for one session and 2.2 ms for sixteen, and the GPU computes for about a tenth of it.
"""
RESUME_PARTS: dict[str, str] = {
    AgentState.CONNECTING: "worker started and pool joined",
    AgentState.DOWNLOADING: "weights on disk checked",
    AgentState.LOADING: "weights loaded",
}
LONG_PROMPT = 2000 * "one more word "
TOKENS_LIMIT_S = 120.0


@dataclass
class GameFigures:
    """One entry per round."""

    to_free: list[float] = field(default_factory=list)
    """Seconds since the game's first kernel."""
    parts: list[dict[str, float]] = field(default_factory=list)
    """Likewise, of what happens until then."""
    frames_kept: list[float] = field(default_factory=list)
    """The share of the frames that the game has alone."""


@dataclass
class Figures:
    """Everything measured; lists have one entry per round."""

    writing: GameFigures = field(default_factory=GameFigures)
    reading: GameFigures = field(default_factory=GameFigures)
    click_to_free: list[float] = field(default_factory=list)
    resume_to_serving: list[float] = field(default_factory=list)
    resume_parts: list[dict[str, float]] = field(default_factory=list)
    joules: dict[str, float] = field(default_factory=dict)
    tokens_per_s: dict[str, float] = field(default_factory=dict)
    false_pauses: int = 0
    """While no game ran and nobody clicked."""
    served_s: float = 0.0


class Card:
    """What NVML says of the first GPU; made before anything of ours runs there."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._used_at_start_bytes = self._used_bytes()

    @property
    def name(self) -> str:
        return str(pynvml.nvmlDeviceGetName(self._handle))

    def joules(self) -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def wait_free(self, pids: tuple[int, ...], others_bytes: int = 0) -> tuple[float, float]:
        """When these processes were gone, and when the card held nothing of theirs any more."""
        gone_s = wait_ended(pids)
        while self._holds(pids) or self._used_bytes() > self._used_at_start_bytes + others_bytes + SLACK_BYTES:
            time.sleep(0.005)
        return gone_s, time.monotonic()

    def _holds(self, pids: Sequence[int]) -> bool:
        listed = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)}
        return bool(listed & set(pids))

    def _used_bytes(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)


class Load:
    """Answers that run all the time; one that is cut off is asked again."""

    def __init__(self, url: str, num_streams: int, prompt: str = "Tell a story.", max_tokens: int = 4000) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._prompt = prompt
        self._max_tokens = max_tokens
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
        messages = [{"role": "user", "content": f"Number {number}. {self._prompt}"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": self._max_tokens, "stream": True}
        body["return_token_ids"] = True
        with httpx.stream("POST", self._url, json=body, timeout=60) as response:
            response.raise_for_status()  # nobody serves at the moment
            for line in response.iter_lines():
                if self._is_over.is_set():
                    return
                if line.startswith("data: {"):
                    self._count(json.loads(line[6:]))

    def _count(self, event: dict[str, list[dict[str, list[int]]]]) -> None:
        with self._lock:
            self.num_tokens += sum(len(choice.get("token_ids", ())) for choice in event.get("choices", ()))

    def wait_running(self) -> None:
        """Until tokens flow. Raises TimeoutError."""
        before, deadline_s = self.num_tokens, time.monotonic() + TOKENS_LIMIT_S
        while self.num_tokens < before + 4 * NUM_STREAMS:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no answers for {TOKENS_LIMIT_S:.0f} s")
            time.sleep(0.02)


def play(seconds: float) -> list[float]:
    """The game from start to end: when its first kernel was done, then when each frame was."""
    argv = [sys.executable, "-m", "benchmarks.game", "--seconds", str(seconds)]
    answer = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(line) for line in answer.stdout.split()]


def frame_rate(frames_s: Sequence[float], span_s: float) -> float:
    """Frames per second in the first `span_s` after the first frame."""
    first_s = frames_s[1]
    return sum(1 for at_s in frames_s[2:] if at_s <= first_s + span_s) / span_s


def game_round(agent: AttachedAgent, card: Card, alone_fps: float, figures: GameFigures) -> None:
    """The game starts while the node serves; the node has to notice by itself."""
    pids = agent.last.worker_pids
    ends: list[tuple[float, float]] = []
    watcher = threading.Thread(target=lambda: ends.append(card.wait_free(pids, GAME_BYTES)))
    watcher.start()
    begin_s = time.monotonic()
    frames = play(GAME_S)
    watcher.join()
    gone_s, free_s = ends[0]
    pause = agent.wait(lambda status: status.pause is not None, since_s=begin_s).status.pause
    assert pause is not None
    decided_s = pause.since_s - time.time() + time.monotonic()
    steps = {"decided": decided_s, "process gone": gone_s, "memory free": free_s}
    figures.to_free.append(free_s - frames[0])
    figures.parts.append({name: at_s - frames[0] for name, at_s in steps.items()})
    figures.frames_kept.append(frame_rate(frames, SLOWDOWN_S) / alone_fps)
    print(f"game: {figures.parts[-1]}", flush=True)
    resume(agent, Resume(anyway=True))


def click_round(agent: AttachedAgent, card: Card, figures: Figures) -> None:
    """Pause, then resume, by the volunteer's hand."""
    pids = agent.last.worker_pids
    at_s = agent.send(Pause())
    figures.click_to_free.append(card.wait_free(pids)[1] - at_s)
    agent.wait_for(AgentState.PAUSED, since_s=at_s)
    total_s, parts = resume(agent, Resume())
    figures.resume_to_serving.append(total_s)
    figures.resume_parts.append(parts)
    print(f"click: {figures.click_to_free[-1]:.2f} s, serving again after {total_s:.1f} s", flush=True)


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
        figures.joules[str(num_streams)] = 1e3 * (card.joules() - joules) / num_tokens
        figures.tokens_per_s[str(num_streams)] = num_tokens / (time.monotonic() - at_s)


@contextlib.contextmanager
def serving_node(scratch: Path, models: Path) -> Iterator[tuple[LocalPool, AttachedAgent]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as maker:  # it must not keep the GPU
        folder = maker.submit(make_folder, scratch / MODEL, models / TOKENIZER, QWEN3_4B, "cuda").result()
    with (
        local_pool(scratch / "pool", [str(folder)]) as pool,
        AttachedAgent(pool.url, scratch / "node", "--name", "volunteer") as agent,
    ):
        agent.wait_for(AgentState.SERVING)
        yield pool, agent


def measure(card: Card, arguments: argparse.Namespace, figures: Figures, keep: Callable[[], None]) -> None:
    """Add to the figures what they lack; `keep` is called after every round."""
    end_s = time.monotonic() + arguments.stop_after
    alone_fps = frame_rate(play(GAME_S), SLOWDOWN_S)
    print(f"the game alone: {alone_fps:.1f} frames/s", flush=True)
    with serving_node(arguments.scratch, arguments.models) as (pool, agent):
        for num_streams in (1, 16) if not figures.joules else ():
            energy(pool, card, num_streams, figures, arguments.seconds)
        num_games = len(figures.writing.to_free) + len(figures.reading.to_free)
        with Load(pool.url, NUM_STREAMS) as load:
            while len(figures.writing.to_free) < arguments.rounds and time.monotonic() < end_s:
                load.wait_running()
                click_round(agent, card, figures)
                load.wait_running()
                game_round(agent, card, alone_fps, figures.writing)
                keep()
        with Load(pool.url, NUM_STREAMS, LONG_PROMPT, max_tokens=4) as load:
            while len(figures.reading.to_free) < arguments.rounds // 2 and time.monotonic() < end_s:
                load.wait_running()
                game_round(agent, card, alone_fps, figures.reading)
                keep()
        num_games = len(figures.writing.to_free) + len(figures.reading.to_free) - num_games
        figures.false_pauses += num_own_pauses(agent) - num_games
        figures.served_s += served_s(agent)


def num_own_pauses(agent: AttachedAgent) -> int:
    """Pauses for another reason than the volunteer's click."""
    pauses = {seen.status.pause.since_s: seen.status.pause for seen in agent.seen if seen.status.pause is not None}
    return sum(1 for pause in pauses.values() if PauseReason.MANUAL not in pause.reasons)


def served_s(agent: AttachedAgent) -> float:
    steps = itertools.pairwise(agent.seen)
    return sum(after.at_s - seen.at_s for seen, after in steps if seen.status.state is AgentState.SERVING)


def table(figures: Figures) -> str:
    def spread(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} s / {max(values):.2f} s" if values else NOT_MEASURED

    def slowdown(game: GameFigures) -> str:
        lost = [100 * (1 - share) for share in game.frames_kept]
        return f"{statistics.median(lost):.0f} % / {max(lost):.0f} %" if lost else NOT_MEASURED

    def freed(game: GameFigures) -> str:
        return f"{spread(game.to_free)} (medians since then: {medians(game.parts)})"

    energy_row = ", ".join(
        f"{n} stream{'s' if n != '1' else ''}: {joules:,.0f} J ({figures.tokens_per_s[n]:.0f} tokens/s)"
        for n, joules in figures.joules.items()
    )
    resume_parts = [
        {RESUME_PARTS.get(name, name): value_s for name, value_s in step.items()} for step in figures.resume_parts
    ]
    resumed = f"{spread(figures.resume_to_serving)} (medians: {medians(resume_parts)})"
    false_pauses = f"{figures.false_pauses} in {figures.served_s / 60:.0f} minutes of serving"
    rows = [
        ("measure", "median / worst", "aim"),
        ("---", "---", "---"),
        ("the game's first kernel to free memory", freed(figures.writing), "4 s / 6 s"),
        (f"the game's slowdown in its first {SLOWDOWN_S:.0f} s", slowdown(figures.writing), "reported"),
        ("while it reads long prompts: first kernel to free memory", freed(figures.reading), "4 s / 6 s"),
        (f"likewise: slowdown in the first {SLOWDOWN_S:.0f} s", slowdown(figures.reading), "reported"),
        ("pause click to free memory", spread(figures.click_to_free), "under 2 s"),
        ("resume click to serving, weights on disk", resumed, "reported"),
        ("energy per 1,000 tokens", energy_row, "reported"),
        ("pauses while only its own worker ran", false_pauses, "0"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def medians(parts: Sequence[Mapping[str, float]]) -> str:
    names = dict.fromkeys(name for step in parts for name in step)
    return ", ".join(f"{name} {statistics.median([step.get(name, 0.0) for step in parts]):.1f} s" for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models (tokenizer)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each energy measurement")
    parser.add_argument("--scratch", type=Path, default=None, help="where 20 GB may be written (default: temporary)")
    parser.add_argument("--out", type=Path, default=None, help="the raw figures, as JSON; those there are added to")
    parser.add_argument("--stop-after", type=float, default=3600.0, help="seconds after which no round begins")
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    figures = load_figures(arguments.out)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.scratch = arguments.scratch or Path(temporary)
        card = Card()
        measure(card, arguments, figures, lambda: keep_figures(figures, arguments.out))
    keep_figures(figures, arguments.out)
    text = f"{card.name}; {describe_machine()}.\n\n{table(figures)}\n"
    print(text)
    if arguments.write:
        TABLE.write_text(_page(text, arguments.rounds), encoding="utf-8")
    return 0


def load_figures(path: Path | None) -> Figures:
    """Those of an earlier run that was cut short; none if there are none."""
    if path is None or not path.exists():
        return Figures()
    return msgspec.json.decode(path.read_bytes(), type=Figures)


def keep_figures(figures: Figures, path: Path | None) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def _page(text: str, num_rounds: int) -> str:
    return f"""# How soon the GPU is yours again

A node serves {NUM_STREAMS} answers with a model of Qwen3-4B's shape (random weights, bfloat16); {num_rounds} rounds,
{num_rounds // 2} while it reads long prompts. The game is `benchmarks/game.py`, which takes 2 GiB and computes without
a pause; its reference ran alone on the card in the same run. Free means: the worker's process has ended, NVML lists no
memory of it, and the card's memory in use is what it was without it.

Command: `python -m benchmarks.pause --models models --write` (a run that is cut short goes on with `--out`).

{text}
{NOTES}"""


if __name__ == "__main__":
    sys.exit(main())
