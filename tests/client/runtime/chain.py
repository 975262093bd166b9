"""A chain of engines in one process: frames travel as bytes between them, as they do between workers."""

from __future__ import annotations

import array
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from client.ipc import EndSession, Sampled, SessionFailed, SessionStarted, StartSession, WorkerMessage
from client.runtime.device import Device
from client.runtime.engine import Engine
from client.runtime.loading import load_folder
from client.runtime.paged_forward import PagedForward
from client.runtime.stage import OpenPaged, Stage
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, decode_frame, encode_frame
from protocol.values import LayerRange, Sampling, SessionId, StopRule

M = TypeVar("M")
DEVICE = os.environ.get("DECENTLLM_TEST_DEVICE", "cpu")
"""Set to `cuda:0`, the tests that compare chains with `generate` do so on that GPU, in float32 all the same."""
RUNS_AHEAD = True if os.environ.get("DECENTLLM_TEST_AHEAD") else None
"""Set, whole models begin their next step before they know this one's tokens, as they do on a GPU."""
UNCOMPILED: OpenPaged = partial(PagedForward.open, limit_s=0.0, sizes=())
"""Steps are captured when they are first met, and nothing is compiled: that takes longer than a test."""


def session_id(number: int) -> str:
    return f"{number:032x}"


def load_stage(
    folder: Path, start: int, stop: int, max_kv_bytes: int = 2**22, open_paged: OpenPaged | None = None
) -> Stage:
    device = Device.open(DEVICE)
    if open_paged is None and not device.is_cpu:
        open_paged = UNCOMPILED
    cut = load_folder(folder, LayerRange(start, stop), torch.float32, device, lambda done, total: None)
    return Stage(cut, max_kv_bytes, torch.float32, device, open_paged)


def prompt_frame(number: int, tokens: Sequence[int], position: int = 0, epoch: int = 1) -> Frame:
    """Token ids for the head, as the coordinator sends them."""
    segment = Segment(SessionId(session_id(number)), epoch, position, len(tokens), 0, 0, Phase.PREFILL)
    return Frame(FrameKind.TOKENS, WireDtype.INT32, 1, (segment,), array.array("i", tokens).tobytes())


class Mailbox:
    """An outbox that keeps messages and queues frames, checked through the wire's own codec."""

    def __init__(self) -> None:
        self.messages: list[WorkerMessage] = []
        self.frames: list[tuple[int, Frame]] = []

    def send_message(self, message: WorkerMessage) -> None:
        self.messages.append(message)

    def send_frame(self, link: int, frame: Frame) -> None:
        self.frames.append((link, decode_frame(encode_frame(frame))))

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]


class Chain:
    """Stages cut at `cuts`. The number of a link is the number of the stage that it leads to."""

    def __init__(
        self, folder: Path, cuts: Sequence[int], max_batch_tokens: int = 512, max_kv_bytes: int = 2**22,
        open_paged: OpenPaged | None = None, runs_ahead: bool | None = RUNS_AHEAD,
    ) -> None:  # fmt: skip
        self._load = lambda stage: load_stage(folder, cuts[stage], cuts[stage + 1], max_kv_bytes, open_paged)
        self._max_batch_tokens = max_batch_tokens
        self.stages = [self._load(stage) for stage in range(len(cuts) - 1)]
        self.mailboxes = [Mailbox() for _ in self.stages]
        pairs = zip(self.stages, self.mailboxes, strict=True)
        self._runs_ahead = runs_ahead
        self.engines = [self._engine(stage, mailbox) for stage, mailbox in pairs]

    def _engine(self, stage: Stage, mailbox: Mailbox) -> Engine:
        return Engine(stage, mailbox, self._max_batch_tokens, runs_ahead=self._runs_ahead)

    @property
    def tail(self) -> Mailbox:
        return self.mailboxes[-1]

    def replace(self, stage: int) -> None:
        """Another worker with the same layers, which knows nothing of what ran there."""
        self.stages[stage] = self._load(stage)
        self.engines[stage] = self._engine(self.stages[stage], self.mailboxes[stage])

    def resume(self, number: int, log: Sequence[int], num_left: int, epoch: int, kept: Sequence[int]) -> None:
        """Open a session anew, each stage keeping so many rows, and give the head what it lacks of the log."""
        self.start(number, len(log), num_left, epoch, kept=kept)
        self.prompt(number, log[kept[0] :], kept[0], epoch)

    def start(
        self, number: int, num_prompt: int, num_new: int, epoch: int = 1, kept: Sequence[int] = (), **tail: Any
    ) -> None:
        """Open a session on every stage. `tail`: sampling, stop_tokens, history; and names of the prompt's blocks."""
        num_stages, total = len(self.stages), num_prompt + num_new
        num_kept = (*(kept or (0,) * num_stages), 0)
        stop = StopRule(total, tail.get("stop_tokens", ()))
        for stage, engine in enumerate(self.engines):
            next_stage = (stage + 1) % num_stages
            is_tail = stage == num_stages - 1
            message = StartSession(
                session_id(number), epoch, stage, num_stages, num_prompt, total,
                next_link=next_stage if num_stages > 1 else None, next_stage=next_stage,
                sampling=tail.get("sampling", Sampling()) if is_tail else None, stop=stop if is_tail else None,
                history=tuple(tail.get("history", ())) if is_tail else (),
                num_kept_tokens=num_kept[stage], next_from=num_kept[stage + 1],
                prefix_hashes=tuple(tail.get("names", ())),
            )  # fmt: skip
            engine.start(message)

    def prompt(self, number: int, tokens: Sequence[int], position: int = 0, epoch: int = 1) -> None:
        self.engines[0].receive(encode_frame(prompt_frame(number, tokens, position, epoch)))

    def end(self, number: int, epoch: int = 1, names: Sequence[str] = ()) -> None:
        for engine in self.engines:
            engine.end(EndSession(session_id(number), epoch, tuple(names)))

    def found(self, number: int) -> list[int]:
        """How many rows each stage said it had when the session was opened last."""
        started = [mailbox.of(SessionStarted) for mailbox in self.mailboxes]
        return [[m for m in said if m.session_id == session_id(number)][-1].num_cached_tokens for said in started]

    def step(self) -> None:
        """One step of each stage in turn, with what it sends delivered at once."""
        for engine, mailbox in zip(self.engines, self.mailboxes, strict=True):
            engine.step()
            for link, frame in mailbox.frames:
                self.engines[link].receive(encode_frame(frame))
            mailbox.frames.clear()

    def run(self) -> None:
        while any(engine.has_work for engine in self.engines):
            self.step()

    def generate(self, prompts: Sequence[Sequence[int]], num_new: int, **tail: Any) -> list[list[int]]:
        """Tokens of each prompt, all served at once, with the sessions ended afterwards."""
        for number, prompt in enumerate(prompts):
            self.start(number, len(prompt), num_new, history=prompt, **tail)
            self.prompt(number, prompt)
        self.run()
        for number in range(len(prompts)):
            self.end(number)
        return [self.tokens(number) for number in range(len(prompts))]

    def tokens(self, number: int) -> list[int]:
        sampled = (message for message in self.tail.of(Sampled) if message.session_id == session_id(number))
        return [token for message in sampled for token in message.tokens]

    def failures(self) -> list[tuple[str, str]]:
        """(session, code) of every stage's failed sessions."""
        return [(m.session_id, m.code) for mailbox in self.mailboxes for m in mailbox.of(SessionFailed)]

    def validate(self) -> None:
        for engine, stage in zip(self.engines, self.stages, strict=True):
            stage.cache.validate()
            engine.sessions.sent.validate()
            if not len(engine.sessions):
                assert stage.cache.num_free_tokens == stage.cache.num_tokens
