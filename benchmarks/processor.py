"""The layer runtime on a processor, beside transformers.

    python -m benchmarks.processor --models models [--rows engine pool memory]

Each group of rows is kept when it was measured, and the page is made of all that are there:

  engine   the 0.5B model in float32 through the engine that the worker runs, 1 and 8 sessions, prompts of 128 tokens,
           against `generate` in the same process, in turn
  pool     a small random Llama (hidden 256, 8 layers, 6.9 M parameters) on two node processes on loopback, prompt 128,
           64 new tokens: one stream and 8 clients, against `generate`; as Petals was measured on such a machine
           (61 tokens/s where transformers had 193; 93 for 8 clients; 1.4 GiB resident a process)
  memory   a node that serves the 0.5B model and has nothing to do: what its agent and worker hold beside the weights

One torch thread per process, as nodes of two cores have it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch
from transformers import AutoModelForCausalLM

from benchmarks.claims.tiny_model import make_tiny_model
from benchmarks.kept_rows import keep_row, kept_rows
from benchmarks.machine import describe_machine
from benchmarks.overhead import MODEL, Generate, Pool
from benchmarks.runtime import PROMPT_TOKENS, Served
from client.runtime.device import Device
from client.runtime.loading import load_folder
from client.runtime.stage import Stage
from coordinator.models.catalog import Catalog
from demo.local_pool import LocalPool, local_pool
from protocol.values import LayerRange

PAGE, RESULTS = Path("docs/processor.md"), Path("benchmarks/processor_results")
NUM_ROUNDS, NUM_NEW = 3, 64
SMALL_LLAMA = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 2048,
}  # fmt: skip
QUESTION = "x" * 112
"""With the chat template 128 tokens: a token is a byte."""
NUM_CLIENTS = 8
IDLE_S = 10.0


class Rows(msgspec.Struct, frozen=True):
    """Lines of the table that are measured together."""

    name: str
    machine: str
    lines: tuple[str, ...]


def engine_rows(folder: Path, scratch: Path) -> Iterator[str]:
    """Decoded tokens per second, medians of rounds in turn."""
    torch.set_num_threads(1)
    device = Device.open("cpu")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    whole = LayerRange(0, model.config.num_hidden_layers)
    cut = load_folder(folder, whole, torch.float32, device, lambda done, total: None)
    stage = Stage(cut, 2**30, torch.float32, device)
    for num_sessions, aim in ((1, 1.0), (8, 1.3)):
        ours, theirs = [], []
        for _ in range(NUM_ROUNDS):
            ours.append(Served(stage, 512).decode(num_sessions, num_steps=NUM_NEW).tokens_per_s)
            theirs.append(_generate_rate(model, num_sessions))
        found, reference = statistics.median(ours), statistics.median(theirs)
        what = f"Qwen2.5-0.5B float32, decode of {num_sessions}"
        yield f"| {what} | {found:.1f} tokens/s | {reference:.1f} tokens/s | {found / reference:.2f} | {aim} |"


def _generate_rate(model: Any, num_sessions: int) -> float:
    """The time of a long answer less that of a short one."""
    prompts = torch.randint(3, 150_000, (num_sessions, PROMPT_TOKENS))

    def seconds(length: int) -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length, min_new_tokens=length,
                do_sample=False, temperature=None, top_p=None, top_k=None, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - begin

    return num_sessions * NUM_NEW / (seconds(NUM_NEW + 2) - seconds(2))


def pool_rows(_: Path, scratch: Path) -> Iterator[str]:
    """Two nodes with half of the layers each."""
    folder = make_tiny_model(scratch / "small-llama", "llama", **SMALL_LLAMA)
    plain = Generate(folder, QUESTION)
    with local_pool(scratch / "pool", [str(folder)]) as pool:
        for number in range(2):
            pool.add_node(f"node{number}", "--cpu", "--direct", "on", "--max-layers", "4", "--max-memory", str(10**9))
        pool.wait_ready()
        asked = Pool(pool, folder.name, QUESTION)
        asked.run(NUM_NEW)
        rounds = [(plain.run(NUM_NEW), asked.run(NUM_NEW)) for _ in range(9)]
        alone = statistics.median(one.token_ms for one, _ in rounds)
        through = statistics.median(one.token_ms for _, one in rounds)
        compute = statistics.median(one.compute_ms for _, one in rounds)
        over = f"{through - alone:.2f} ms a token over it, {compute - alone:.2f} of it in the stages' forwards"
        yield (
            f"| small Llama, two nodes, one stream | {1000 / through:.0f} tokens/s | {1000 / alone:.0f} tokens/s "
            f"| {over} | 3 ms over it |"
        )
        together = statistics.median(_together(asked) for _ in range(NUM_ROUNDS))
        yield f"| the same, {NUM_CLIENTS} clients | {together:.0f} tokens/s | | | 200 tokens/s |"


def _together(asked: Pool) -> float:
    """Tokens per second of all clients, from the first question to the last token."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(lambda _: asked.run(NUM_NEW), range(NUM_CLIENTS)))
    return NUM_CLIENTS * NUM_NEW / (time.perf_counter() - begin)


def memory_rows(folder: Path, scratch: Path) -> Iterator[str]:
    """Resident memory less the bytes of the weights, which are held once in float32."""
    model = Catalog(scratch / "catalog").add(str(folder))
    weights = 4 * sum(tensor.numel for tensor in model.manifest.tensors)
    with local_pool(scratch / "pool", [str(folder)]) as pool:
        pool.add_node("node", "--cpu", "--max-memory", str(2**33))
        pool.wait_ready()
        time.sleep(IDLE_S)
        resident, private = _memory(pool)
    for what, size in (("resident", resident), ("private", private)):
        yield f"| an idle node beside its weights, {what} | {(size - weights) / 1e6:.0f} MB | | | 500 MB |"


def _memory(pool: LocalPool) -> tuple[int, int]:
    node = psutil.Process(pool.nodes[0].process.pid)
    found = [process.memory_full_info() for process in (node, *node.children(recursive=True))]
    return sum(one.rss for one in found), sum(one.uss for one in found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    arguments = parser.parse_args(argv)
    for name in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="decentllm-processor-") as scratch:
            lines = []
            for line in ROWS[name](arguments.models / MODEL, Path(scratch)):
                print(line, flush=True)
                lines.append(line)
        keep_row(Rows(name, describe_machine(), tuple(lines)), RESULTS)
    PAGE.write_text(_page(kept_rows(list(ROWS), RESULTS, Rows)), encoding="utf-8")
    return 0


ROWS: Mapping[str, Callable[[Path, Path], Iterator[str]]] = {
    "engine": engine_rows, "pool": pool_rows, "memory": memory_rows,
}  # fmt: skip
"""By name: (folder of the 0.5B model, a folder to work in) to lines of the table."""


def _page(measured: Sequence[Rows]) -> str:
    table = "\n".join(line for rows in measured for line in rows.lines)
    machines = "\n".join(f"- {rows.name}: {rows.machine}" for rows in measured)
    return f"""# The layer runtime on a processor

{machines}

Command: `python -m benchmarks.processor`. One torch thread per process; medians of rounds in turn.

| measure | figure | transformers `generate` | | aim |
|---|---|---|---|---|
{table}

The small Llama is the one that Petals' newest commit was measured with on such a machine: two servers on loopback had
61 tokens/s for one stream, where transformers had 193, and 93 tokens/s for eight clients; each of six processes had
1.4 GiB of memory to serve 7 MB of weights.

## What limits it

- **The engine** waits for the same products of the same library as `generate`. One of eight rows takes three times as
  long as one of a single row (896 x 4,864 in float32: 0.8 and 2.4 ms with one thread), and nothing of batching is left
  that the reference does not have as well. Weights laid out by columns were 0.8 to 1.35 times as fast, by shape and
  number of rows, once they did not fit the cache: no gain to be had there.
- **Two nodes** compute each token in two forwards of half the layers, each with its own beginning and end (rows in,
  rotary embedding, rows out), and hand it over twice; one hop costs 0.9 ms here, most of it waking four processes in
  turn ([performance.md](performance.md), "Stages on one GPU"). The machine was shared and its speed swings: `generate`
  had 230 tokens/s in a run an hour before, two nodes 95 and eight clients 342, 6.2 ms a token over it.
- **Resident memory** beside the weights is torch and transformers themselves; a quarter of it is shared with other
  processes that use them (private is less).
"""


if __name__ == "__main__":
    sys.exit(main())
