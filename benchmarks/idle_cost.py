"""What the app costs the volunteer's machine beside the GPU's work: processor, memory and wake-ups of window and agent.

    python -m benchmarks.idle_cost --models models --write      (wants a screen, or xvfb-run)

The real tray app with a real agent, worker (CPU) and coordinator; once with nothing to do, once while it streams an
answer. CPU is user and system time over the wall's, 100 % being one core; memory is the private part (USS) and the
whole (RSS) from /proc; wake-ups are voluntary context switches of all threads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.machine import describe_machine
from demo.local_pool import ROOT, LocalPool, local_pool

MODEL = "gemma-3-270m"
TABLE = Path("docs/idle-cost.md")


@dataclass(frozen=True)
class Cost:
    cpu_percent: float
    uss_mb: float
    rss_mb: float
    wakeups_per_s: float


@dataclass(frozen=True)
class Reading:
    """Counters of one process since its start."""

    at_s: float
    cpu_s: float
    num_switches: int


def read(process: psutil.Process) -> Reading:
    times = process.cpu_times()
    switches = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        switches += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return Reading(time.monotonic(), times.user + times.system, switches)


def cost(process: psutil.Process, before: Reading) -> Cost:
    after, memory = read(process), process.memory_full_info()
    span_s = after.at_s - before.at_s
    return Cost(
        100 * (after.cpu_s - before.cpu_s) / span_s,
        memory.uss / 1e6,
        memory.rss / 1e6,
        (after.num_switches - before.num_switches) / span_s,
    )


def start_app(pool: LocalPool, scratch: Path) -> subprocess.Popen[bytes]:
    """The tray app, contributing, with its own folders."""
    folders = {name: str(scratch / name) for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    argv = [sys.executable, "-m", "client", "--contribute", "--cpu", "--name", "volunteer", "--join", pool.url]
    log = (scratch / "app.log").open("ab")
    return subprocess.Popen(
        [*argv, "--data-dir", str(scratch / "data")],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        env={**os.environ, **folders, "HOME": str(scratch)},
    )


def agent_of(app: subprocess.Popen[bytes]) -> psutil.Process:
    """The window's child that is the agent; its own child is the worker."""
    (agent,) = psutil.Process(app.pid).children()
    return agent


def stream(pool: LocalPool, is_over: threading.Event) -> None:
    """Answers, one after the other, until told to stop."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "stream": True}
    while not is_over.is_set():
        with httpx.stream("POST", f"{pool.url}/v1/chat/completions", json=body, timeout=120) as response:
            for _ in response.iter_lines():
                if is_over.is_set():
                    return


def measure(models: Path, seconds: float) -> dict[tuple[str, str], Cost]:
    costs: dict[tuple[str, str], Cost] = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        with local_pool(scratch / "pool", [str(models / MODEL)]) as pool:
            app = start_app(pool, scratch)
            try:
                pool.wait_ready()
                time.sleep(5)  # what the start has left to do is no idle cost
                watched = {"window": psutil.Process(app.pid), "agent": agent_of(app)}
                costs |= _watch("serving, nothing to answer", watched, seconds)
                is_over = threading.Event()
                load = threading.Thread(target=stream, args=(pool, is_over), daemon=True)
                load.start()
                time.sleep(5)
                costs |= _watch("serving, one answer streams", watched, seconds)
                is_over.set()
                load.join(30)
            finally:
                app.terminate()
                app.wait(30)
    return costs


def _watch(what: str, watched: dict[str, psutil.Process], seconds: float) -> dict[tuple[str, str], Cost]:
    before = {name: read(process) for name, process in watched.items()}
    time.sleep(seconds)
    return {(what, name): cost(process, before[name]) for name, process in watched.items()}


def table(costs: dict[tuple[str, str], Cost]) -> str:
    lines = ["| | | CPU | private memory | resident | wake-ups/s | aim |", "|---|---|---|---|---|---|---|"]
    aims = {"window": "under 1 % and 120 MB", "agent": "under 3 %"}
    for (what, name), c in costs.items():
        cells = [what, name, f"{c.cpu_percent:.2f} %", f"{c.uss_mb:.0f} MB", f"{c.rss_mb:.0f} MB"]
        lines.append(f"| {' | '.join([*cells, f'{c.wakeups_per_s:.1f}', aims[name]])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two measurements")
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    text = table(measure(arguments.models, arguments.seconds))
    print(text)
    if arguments.write:
        TABLE.write_text(_page(text, arguments.seconds), encoding="utf-8")
    return 0


def _page(text: str, seconds: float) -> str:
    return f"""# What the app costs beside the GPU's work

{describe_machine()}.
Command: `make benchmark-volunteer` (`python -m benchmarks.idle_cost --write`); {seconds:.0f} s each.

{text}

The worker's own cost is the work itself and is not in the table. CPU: 100 % is one core.
"""


if __name__ == "__main__":
    sys.exit(main())
