"""What the pool costs over plain `generate`: time per token, and where it goes.

    python -m benchmarks.overhead --models models

Both sides answer the same prompt greedily with the same weights in float32, one torch thread per process, in turn in
one run. Time per token is the decode phase only: from the first token to the last, over their number less one. The
stages of one token work one after the other, so a pool's compute is the sum over its stages; what is neither compute
nor turning tensors to bytes and back is transport: sockets, queues, processes' wake-ups, the coordinator's commit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM

from benchmarks.machine import describe_machine
from coordinator.api.served import model_facts
from coordinator.models.catalog import Catalog
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.scheduler.cost import memory_for
from demo.local_pool import LocalPool, local_pool
from protocol.values import Variant

QUESTION = "Write a Python function that reverses a string."
MODEL = "qwen2.5-coder-0.5b-instruct"
TABLE = Path("docs/overhead.md")


@dataclass(frozen=True)
class Sample:
    """One answer's decode phase, milliseconds per token."""

    token_ms: float
    compute_ms: float = 0.0
    codec_ms: float = 0.0
    text: str = ""

    @property
    def transport_ms(self) -> float:
        return self.token_ms - self.compute_ms - self.codec_ms


@dataclass(frozen=True)
class Tick:
    """A token's arrival; the stages' times are sums since the answer began."""

    at_s: float
    compute_us: int
    codec_us: int


class Clocked:
    """A streamer for `generate` that only notes when each token came."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass


class Generate:
    """The reference: the whole model in this process."""

    def __init__(self, folder: Path, question: str = QUESTION) -> None:
        torch.set_num_threads(1)
        self._question = question
        self._tokenizer = ChatTokenizer.load(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(self, num_tokens: int) -> Sample:
        prompt = torch.tensor([self._tokenizer.encode_chat([{"role": "user", "content": self._question}])])
        clock = Clocked()
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        answer = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=num_tokens,
            repetition_penalty=1.0,
            streamer=clock,
            **options,
        )
        first, last = clock.times_s[1], clock.times_s[-1]  # the first call brings the prompt
        text = self._tokenizer.decode(int(t) for t in answer[0, prompt.shape[1] :])
        return Sample(1e3 * (last - first) / (num_tokens - 1), text=text)


class Pool:
    """The same through a pool of real processes."""

    def __init__(self, pool: LocalPool, model: str = MODEL, question: str = QUESTION) -> None:
        self._url = f"{pool.url}/v1/chat/completions"
        self._model = model
        self._question = question

    def run(self, num_tokens: int) -> Sample:
        """What the stages had spent when the first token came (the prefill) is taken off."""
        ticks, text = self._stream(num_tokens)
        first, last = ticks[0], ticks[-1]
        per_token = 1e-3 / (num_tokens - 1)
        return Sample(
            token_ms=1e3 * (last.at_s - first.at_s) / (num_tokens - 1),
            compute_ms=(last.compute_us - first.compute_us) * per_token,
            codec_ms=(last.codec_us - first.codec_us) * per_token,
            text=text,
        )

    def _stream(self, num_tokens: int) -> tuple[list[Tick], str]:
        """When each token came, with the stages' account so far, and the text."""
        messages = [{"role": "user", "content": self._question}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": num_tokens, "stream": True}
        ticks, text = list[Tick](), ""
        with httpx.stream("POST", self._url, json={**body, "return_token_ids": True}, timeout=300) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                choice = event["choices"][0]
                text += choice["delta"].get("content", "")
                if choice.get("token_ids"):
                    ticks.append(Tick(time.perf_counter(), **event["decentllm"]["timing"]))
        return ticks, text


def start_pool(stack: ExitStack, folder: Path, model_folder: Path, num_nodes: int) -> Pool:
    """A pool whose nodes share the model evenly."""
    model = Catalog(folder / "pool" / "models").add(str(model_folder))
    share = -(-model.shape.num_layers // num_nodes) + (num_nodes > 1)
    size = memory_for(model_facts(model), Variant.FLOAT32, share) if num_nodes > 1 else 2**33
    pool = stack.enter_context(local_pool(folder, [str(model_folder)]))
    for number in range(num_nodes):
        pool.add_node(f"node{number}", "--cpu", "--max-memory", str(size))
    pool.wait_ready()
    return Pool(pool)


def measure(sides: dict[str, Callable[[int], Sample]], num_rounds: int, num_tokens: int) -> dict[str, list[Sample]]:
    """Every side in turn, round by round, after one round that does not count."""
    for run in sides.values():
        run(4)
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(num_rounds):
        for name, run in sides.items():
            samples[name].append(run(num_tokens))
            print(f"round {number + 1}: {name}: {samples[name][-1].token_ms:.1f} ms a token", flush=True)
    answers = {sample.text for side in samples.values() for sample in side}
    if len(answers) != 1:
        raise SystemExit("the sides do not answer the same: nothing to compare")
    return samples


def table(samples: dict[str, list[Sample]]) -> str:
    """Time per token: median over the rounds, smallest and largest in brackets. Its parts: means, which add up."""
    head = ["", "ms per token", "over generate", "compute", "serialisation", "transport"]
    rows = [head, ["---"] * len(head)]
    reference = samples["generate"]
    for name, side in samples.items():
        times = [sample.token_ms for sample in side]
        over = [ours.token_ms - theirs.token_ms for ours, theirs in zip(side, reference, strict=True)]
        cells = [name, f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"]
        cells += ["", "", "", ""] if side is reference else [f"{statistics.median(over):+.1f} ms", *_shares(side)]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shares(side: Sequence[Sample]) -> list[str]:
    total = statistics.mean(s.token_ms for s in side)
    parts = [[s.compute_ms for s in side], [s.codec_ms for s in side], [s.transport_ms for s in side]]
    means = [statistics.mean(part) for part in parts]
    return [f"{value:.2f} ms ({100 * value / total:.1f} %)" for value in means]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help=f"write the table to {TABLE}")
    arguments = parser.parse_args(argv)
    folder = arguments.models / MODEL
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        sides: dict[str, Callable[[int], Sample]] = {"generate": Generate(folder).run}
        for num_nodes in (1, 2):
            name = f"pool of {num_nodes} node{'s' if num_nodes > 1 else ''}"
            sides[name] = start_pool(stack, Path(scratch) / str(num_nodes), folder, num_nodes).run
        text = table(measure(sides, arguments.rounds, arguments.tokens))
    print(text)
    if arguments.write:
        TABLE.write_text(_page(text, arguments.rounds, arguments.tokens), encoding="utf-8")
    return 0


def _page(text: str, num_rounds: int, num_tokens: int) -> str:
    return f"""# What the pool costs over plain `generate`

{MODEL} in float32, greedy, {num_tokens} tokens, {num_rounds} rounds in turn. Time per token: medians (smallest to
largest); its parts: means, with their share.
{describe_machine()}.
Command: `make benchmark` (`python -m benchmarks.overhead --write`).

{text}

Decode phase only. The stages of one token work one after the other on one machine, one torch thread each, so compute
is their sum. Serialisation is turning tensors into bytes and back; transport is all the rest: sockets, queues,
processes' wake-ups, the coordinator's commit and the stream to the client.
"""


if __name__ == "__main__":
    sys.exit(main())
