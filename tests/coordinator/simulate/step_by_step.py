"""Decode step by step: every stage takes whatever waits, rows of a step leave as one frame per neighbour.

A few seconds of a small pool take as long as an hour in the fluid simulation; it is the yardstick for that."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from typing import Any

JITTER = 0.1


def mean_tpot_s(
    stages: Sequence[tuple[float, float]], hop_s: float, chains: Sequence[Sequence[int]], time_s: float = 40.0
) -> float:
    """`stages`: fixed time of a step and time per row; `chains`: per session its stages; every hop takes `hop_s`."""
    chance = random.Random(0)
    agenda: list[tuple[float, int, str, Any]] = []
    waiting: list[list[tuple[int, int]]] = [[] for _ in stages]
    is_busy = [False] * len(stages)
    num_tokens, num_written = 0, 0

    def at(when_s: float, what: str, about: Any) -> None:
        nonlocal num_written
        num_written += 1
        heapq.heappush(agenda, (when_s, num_written, what, about))

    def start_soon(stage: int, now_s: float) -> None:
        """After everything else that arrives at this moment."""
        if waiting[stage] and not is_busy[stage]:
            is_busy[stage] = True
            at(now_s, "start", stage)

    for session in range(len(chains)):
        at(chance.random() * 0.1, "frame", [(session, 0)])
    while agenda[0][0] < time_s:
        now_s, _, what, about = heapq.heappop(agenda)
        if what == "frame":
            for session, place in about:
                waiting[chains[session][place]].append((session, place))
                start_soon(chains[session][place], now_s)
        elif what == "start":
            rows, waiting[about] = waiting[about], []
            fixed_s, row_s = stages[about]
            at(now_s + (fixed_s + len(rows) * row_s) * _jitter(chance), "done", (about, rows))
        else:
            stage, rows = about
            is_busy[stage] = False
            frames: dict[int, list[tuple[int, int]]] = {}
            for session, place in rows:
                following = (place + 1) % len(chains[session])
                num_tokens += following == 0 and now_s > time_s / 5
                frames.setdefault(chains[session][following], []).append((session, following))
            for target, frame in frames.items():
                at(now_s + (0.0 if target == stage else hop_s * _jitter(chance)), "frame", frame)
            start_soon(stage, now_s)
    return 0.8 * time_s * len(chains) / num_tokens


def _jitter(chance: random.Random) -> float:
    return 1.0 + JITTER * chance.uniform(-1.0, 1.0)
