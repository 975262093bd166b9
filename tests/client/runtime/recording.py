"""Captured steps without CUDA: the step is computed again, and its output copied to where it was the first time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from client.runtime.cut import CutModel
from client.runtime.decode_graphs import Replay
from client.runtime.kv_cache import KvCache
from client.runtime.paged_forward import PagedForward
from client.runtime.paged_steps import gather_decode


class EagerRecorder:
    """Counts what it was asked for."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def record(self, step: Callable[[], Tensor]) -> Replay:
        self.num_recorded += 1
        output = step().clone()

        def replay() -> Tensor:
            self.num_replayed += 1
            return output.copy_(step())

        return replay

    def synchronize(self) -> None:
        pass


class PagedOpener:
    """Opens a stage's paged forward on a CPU, with the attention that needs no Triton."""

    def __init__(self) -> None:
        self.recorder = EagerRecorder()

    def __call__(self, cut: CutModel, cache: KvCache, modules: Mapping[int, Any]) -> PagedForward:
        return PagedForward(cut, cache, modules, self.recorder, gather_decode)
