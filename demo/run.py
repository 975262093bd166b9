"""`make demo`: a coordinator and two nodes on this machine, each small enough to hold about half of the layers.

Without ASK it prints the chat page's address and runs until Ctrl-C; with --ask it streams one answer and ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from coordinator.api.served import model_facts
from coordinator.app import show_progress
from coordinator.models.catalog import Catalog, Model
from coordinator.models.errors import ModelError
from coordinator.scheduler.cost import memory_for
from demo.fetch_model import MODELS, FetchError, fetch
from demo.local_pool import LocalPool, PoolFailed, local_pool
from protocol.values import Variant

SMALL_MODEL = "qwen2.5-coder-0.5b"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; everything that was started is stopped by then."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: shells start background jobs with it ignored
        signal.signal(number, _interrupt)
    try:
        model = _prepare(arguments)
        with local_pool(arguments.folder, [str(model.folder)], "--name", "Demo pool", port=arguments.port) as pool:
            _start_nodes(pool, model)
            if arguments.ask:
                ask(pool, model.folder.name, arguments.ask)
                return 0
            print(f"\nChat page: {pool.url}/\nCtrl-C stops everything.", flush=True)
            _wait_for_ever()
    except KeyboardInterrupt:
        print("\nStopped.")
    except (FetchError, ModelError, PoolFailed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def ask(pool: LocalPool, model: str, question: str) -> None:
    """One question through the whole pool; the answer is printed as it comes, and who gave it."""
    print(f"\n> {question}\n", flush=True)
    nodes: list[dict[str, str]] = []
    for event in stream_answer(pool.url, model, question):
        nodes = event.get("decentllm", {}).get("nodes", nodes)
        print(_text_of(event), end="", flush=True)
    chain = " -> ".join(f"{node['name']} (layers {node['layers']})" for node in nodes)
    print(f"\n\nAnswered by {chain}.")


def stream_answer(url: str, model: str, question: str) -> Iterator[dict[str, Any]]:
    """The events of a greedy answer. Raises PoolFailed with the API's own sentence."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=300) as response:
        if response.status_code != 200:
            raise PoolFailed(json.loads(response.read())["error"]["message"])
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def _text_of(event: dict[str, Any]) -> str:
    if "error" in event:
        raise PoolFailed(event["error"]["message"])
    return str(event["choices"][0]["delta"].get("content", "")) if event["choices"] else ""


def _prepare(arguments: argparse.Namespace) -> Model:
    """The model in the catalog: fetched and converted if this is the first time."""
    spec = arguments.model
    if spec in MODELS:
        print(f"Getting the demo model {spec} (once).", flush=True)
        spec = str(fetch(MODELS[spec], arguments.models))
    print("Checking the model's files (a GGUF file is converted once).", flush=True)
    return Catalog(arguments.folder / "pool" / "models").add(spec, progress=show_progress)


def _start_nodes(pool: LocalPool, model: Model) -> None:
    """Two nodes, limited in memory to a little more than half of the layers each."""
    half = (model.shape.num_layers + 1) // 2 + 1
    size = memory_for(model_facts(model), Variant.FLOAT32, half)
    print(f"Starting two nodes of {size / 1e9:.2f} GB each.", flush=True)
    for name in ("alice", "bob"):
        pool.add_node(name, "--max-memory", str(size))
    pool.wait_ready(say=_OncePerLine())


class _OncePerLine:
    """Prints a line only when it differs from the last one."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            self._last = line
            print(f"  {line}", flush=True)


def _wait_for_ever() -> None:
    """Until a signal's KeyboardInterrupt. With a timeout, for one that comes just before the wait begins."""
    while not threading.Event().wait(timeout=1.0):
        continue


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A pool of two nodes on this machine.")
    parser.add_argument("--model", default=SMALL_MODEL, help="a demo model, a folder, a .gguf file or a hub id")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where demo models are kept")
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="where the pool keeps its files")
    parser.add_argument("--ask", default="", help="ask this, print the answer, stop")
    parser.add_argument("--port", type=int, default=0, help="of the chat page (default: any free one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
