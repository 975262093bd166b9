"""From the click to serving: from nothing, with the runtime prepared, and with everything on disk.

    python installer/build.py app && python -m benchmarks.first_start --models models --write

The installed app's agent (dist/decentllm, as in the .deb) with a pool on this machine as the weights' mirror. "From
nothing" has an empty folder and an empty cache: the runtime comes from the package index (torch from --find-links, if
given), the weights from the pool. For each state that the window shows: how long, and the longest time in it without
any news; a wait of over a second must show progress.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.attached_agent import AttachedAgent, Seen
from benchmarks.machine import describe_machine
from client.status import AgentState
from demo.local_pool import LocalPool, local_pool

MODEL = "qwen2.5-coder-0.5b-instruct"
APP = Path("dist/decentllm/decentllm")
TABLE = Path("docs/first-start.md")
HAS_BAR = (AgentState.PREPARING, AgentState.DOWNLOADING, AgentState.LOADING)


@dataclass
class Start:
    """Seconds from the click to serving, and per state its time and its longest silence."""

    total_s: float
    states: dict[AgentState, float] = field(default_factory=dict)
    silences: dict[AgentState, float] = field(default_factory=dict)


def parts_of(seen: Sequence[Seen], clicked_s: float) -> Start:
    start = Start(seen[-1].at_s - clicked_s)
    first = Seen(clicked_s, seen[0].status)
    for before, after in itertools.pairwise([first, *seen]):
        state, span_s = before.status.state, after.at_s - before.at_s
        start.states[state] = start.states.get(state, 0.0) + span_s
        start.silences[state] = max(start.silences.get(state, 0.0), span_s)
    return start


def click(pool: LocalPool, data_dir: Path, app: Path) -> Start:
    """One start. The agent is started by the click, as the window does it."""
    with AttachedAgent(pool.url, data_dir, "--cpu", "--name", "volunteer", program=(str(app), "node", "run")) as agent:
        served = agent.wait_for(AgentState.SERVING)
        return parts_of([s for s in agent.seen if s.at_s <= served.at_s], agent.started_s)


def measure(models: Path, app: Path) -> dict[str, Start]:
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        data_dir = scratch / "data"
        with local_pool(scratch / "pool", [str(models / MODEL)]) as pool:
            starts = {"from nothing": click(pool, data_dir, app)}
            shutil.rmtree(data_dir / "weights")
            starts["runtime prepared, no weights"] = click(pool, data_dir, app)
            starts["runtime and weights on disk"] = click(pool, data_dir, app)
    return starts


def table(starts: dict[str, Start]) -> str:
    states = [s for s in AgentState if any(s in start.states for start in starts.values()) and s != AgentState.SERVING]
    rows = [["", "click to serving", *(state.value for state in states)], ["---"] * (len(states) + 2)]
    for name, start in starts.items():
        cells = [f"{start.states.get(s, 0.0):.1f} s ({start.silences.get(s, 0.0):.1f} s)" for s in states]
        rows.append([name, f"{start.total_s:.1f} s", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--app", type=Path, default=APP)
    parser.add_argument("--find-links", default=os.environ.get("FIND_LINKS", ""), help="folder with torch's wheel")
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    if arguments.find_links:
        os.environ["DECENTLLM_FIND_LINKS"] = arguments.find_links
    text = table(measure(arguments.models, arguments.app.absolute()))
    print(text)
    if arguments.write:
        TABLE.write_text(_page(text), encoding="utf-8")
    return 0


def _page(text: str) -> str:
    return f"""# From the click to serving

{MODEL} (24 layers, CPU, float32), mirror on the same machine.
{describe_machine()}.
Command: `python -m benchmarks.first_start --write`.

{text}

In brackets: the longest time in that state without news from the agent. Preparing, downloading and loading show a bar
in bytes; connecting, measuring and waiting show a sentence and a moving picture. How long "preparing" takes is the
internet connection's and the disk's business: 0.25 GB to download for a CPU, 2.8 GB for an NVIDIA GPU.
"""


if __name__ == "__main__":
    sys.exit(main())
