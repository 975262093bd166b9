"""What each further stage costs a token: one model in 1, 2 and 4 stages on one GPU, over websockets on loopback.

    python -m benchmarks.splits --models models [--layers 12]

A real coordinator and nodes, each with its agent and worker; a model of Qwen3-8B's shape with random weights and fewer
layers, for what a stage adds does not depend on how many layers it has. Time per token is that of the decode phase of
one stream, as the user sees it; compute is the sum over the stages.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.overhead import MODEL, Pool, Sample
from benchmarks.synthetic import QWEN3_8B, make_folder
from demo.local_pool import local_pool

NUMS_STAGES = (1, 2, 4)
NUM_TOKENS, NUM_ANSWERS = 200, 5
KV_BYTES = 4 * 2**30
LAYER_BYTES, END_BYTES = 386 * 10**6, 2 * 1_245 * 10**6
START_LIMIT_S = 240.0


def measure(model: Path, num_layers: int, num_stages: int) -> list[Sample]:
    """Answers of a fresh pool, but for its first one."""
    share = num_layers // num_stages
    limit_bytes = share * LAYER_BYTES + END_BYTES + KV_BYTES
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decentllm-splits-")))
        pool = stack.enter_context(local_pool(folder, [str(model)]))
        for number in range(num_stages):
            pool.add_node(
                f"node{number}", "--direct", "on", "--max-memory", str(limit_bytes), "--max-layers", str(share)
            )
        pool.wait_ready(START_LIMIT_S)
        asked = Pool(pool, model.name)
        return [asked.run(NUM_TOKENS) for _ in range(NUM_ANSWERS + 1)][1:]


def table(found: dict[int, list[Sample]]) -> Iterator[str]:
    yield "| stages | ms a token | compute | per further stage |"
    yield "|---|---|---|---|"
    alone_ms = _median(found[1])
    for num_stages, samples in found.items():
        compute_ms = statistics.median(sample.compute_ms for sample in samples)
        further = f"{(_median(samples) - alone_ms) / (num_stages - 1):.2f} ms" if num_stages > 1 else ""
        yield f"| {num_stages} | {_median(samples):.2f} | {compute_ms:.2f} | {further} |"


def _median(samples: list[Sample]) -> float:
    return statistics.median(sample.token_ms for sample in samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the demo's models")
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decentllm-splits-model-") as folder:
        model = Path(folder) / "qwen3-8b-shape"
        shape = {**QWEN3_8B, "num_hidden_layers": arguments.layers}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as aside:  # its GPU memory goes with it
            aside.submit(make_folder, model, arguments.models / MODEL, shape, "cuda").result()
        found = {}
        for num_stages in NUMS_STAGES:
            found[num_stages] = measure(model, arguments.layers, num_stages)
            print(f"{num_stages} stages: {_median(found[num_stages]):.2f} ms a token", flush=True)
    print(describe_machine(), *table(found), sep="\n")


if __name__ == "__main__":
    main()
