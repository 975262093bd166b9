"""Decoder layers through torch.compile, switched on for a while: what is compiled serves one kind of step only.

Each layer is compiled by itself. Layers of a kind share the result, because nothing that tells them apart is looked at
(see `pool_call.PooledLayer`). Not under inference mode, which makes Dynamo compile anew for each layer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

RECOMPILE_LIMIT = 256
"""Batch sizes times kinds of layers; past Dynamo's own 8, it would silently not compile."""


DYNAMO_OPTIONS = {
    "recompile_limit": RECOMPILE_LIMIT,
    "accumulated_recompile_limit": 4 * RECOMPILE_LIMIT,
    "specialize_float": True,  # else norms' epsilons and scalings are tensors that are made anew at each call
}


class CompiledLayers:
    """`dynamic`: one compilation for any number of rows, else one for each."""

    def __init__(self, layers: Iterable[Any], dynamic: bool, backend: str = "inductor") -> None:
        self._layers = list(layers)
        self._calls = []
        for layer in self._layers:
            layer.compile(dynamic=dynamic, backend=backend)
            self._calls.append(layer._compiled_call_impl)
            layer._compiled_call_impl = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """During this block, the layers run as compiled; the first steps compile."""
        for layer, call in zip(self._layers, self._calls, strict=True):
            layer._compiled_call_impl = call
        try:
            with torch._dynamo.config.patch(DYNAMO_OPTIONS):
                yield
        finally:
            for layer in self._layers:
                layer._compiled_call_impl = None


def has_triton() -> bool:
    """Whether Triton is installed: inductor generates its kernels in it."""
    return importlib.util.find_spec("triton") is not None
