"""From lazy tensors to a cut model on a device, through transformers' own loader.

transformers silently fills tensors that a checkpoint lacks with random numbers: here that is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from client.runtime.architecture import Architecture, read_architecture
from client.runtime.attention import INTERFACE_NAME
from client.runtime.checkpoint import Checkpoint, LazyTensor, plan_tensors
from client.runtime.cut import CutModel, cut_class, cut_of, meta_cut
from client.runtime.device import Device
from client.runtime.errors import BadConfigError, BadWeightsError
from protocol.values import LayerRange

PROGRESS_BYTES = 8 * 2**20
"""Progress is told about this often; a progress bar needs no more."""


class Indexable(Protocol):
    """What transformers wants of an unread tensor: `tensor[...]` reads it."""

    def __getitem__(self, index: Any) -> Tensor: ...


def plan_slice(config_json: str, layers: LayerRange, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the checkpoint's tensors that `layers` need, in the order given. No weights are looked at.

    Raises BadConfigError, UnsupportedArchitectureError or BadWeightsError."""
    architecture = read_architecture(config_json)
    check_range(architecture, layers)
    plan = plan_tensors(meta_cut(architecture, layers.start, layers.stop), names)
    return tuple(name for name in names if name in plan)


def check_range(architecture: Architecture, layers: LayerRange) -> None:
    """Raises BadConfigError if the model has no such layers."""
    if layers.stop > architecture.num_layers:
        raise BadConfigError(f"it has {architecture.num_layers} layers, {layers} were asked for")


def load_folder(
    folder: Path, layers: LayerRange, dtype: torch.dtype, device: Device, on_progress: Callable[[int, int], None]
) -> CutModel:
    """Load `layers` from a checkpoint folder. `on_progress` gets (bytes done, bytes in all).

    Raises BadConfigError, UnsupportedArchitectureError, BadWeightsError, or what torch raises when memory runs out."""
    architecture = read_architecture(read_config(folder))
    check_range(architecture, layers)
    checkpoint = Checkpoint.open(folder)
    try:
        plan = plan_tensors(meta_cut(architecture, layers.start, layers.stop), checkpoint.file_of)
        progress = Progress(sum(checkpoint.size_bytes(name) for name in plan), on_progress)
        tensors = _lazily(checkpoint, plan, progress)
        cut = materialise(cut_class(architecture, layers.start, layers.stop), architecture, tensors, dtype, device)
        progress.finish()
        return cut
    finally:
        checkpoint.close()


def load_cut(
    checkpoint: Checkpoint, architecture: Architecture, start: int, stop: int, place: tuple[torch.dtype, Device],
    progress: Progress,
) -> CutModel:  # fmt: skip
    """Layers [start, stop) of an opened checkpoint, in the dtype and on the device that `place` names."""
    plan = plan_tensors(meta_cut(architecture, start, stop), checkpoint.file_of)
    tensors = _lazily(checkpoint, plan, progress)
    return materialise(cut_class(architecture, start, stop), architecture, tensors, *place)


def _lazily(checkpoint: Checkpoint, plan: Mapping[str, str], progress: Progress) -> dict[str, LazyTensor]:
    """By the model's name for it, each tensor that `plan` names; it is read when it is asked for."""
    return {inner: checkpoint.lazy(name, progress.add) for name, inner in plan.items()}


def materialise(
    model_class: Any, architecture: Architecture, tensors: Mapping[str, Indexable], dtype: torch.dtype, device: Device
) -> CutModel:
    """Build the model on `device` from `tensors`. Raises BadWeightsError naming the first tensor that is not usable."""
    # Handing transformers a device map needs the accelerate package, which a CPU worker can do without.
    placement = {} if device.is_cpu else {"device_map": {"": str(device.torch_device)}}
    try:
        model, info = model_class.from_pretrained(
            None, config=architecture.config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True,
            attn_implementation=INTERFACE_NAME, ignore_mismatched_sizes=True, **placement,
        )  # fmt: skip
    except Exception:
        _raise_own_fault(tensors)
        raise
    _raise_own_fault(tensors)
    _check_complete(info)
    return cut_of(model.eval().requires_grad_(False))


def _raise_own_fault(tensors: Mapping[str, Indexable]) -> None:
    for tensor in tensors.values():
        if isinstance(tensor, LazyTensor) and tensor.fault is not None:
            raise tensor.fault


def _check_complete(info: dict[str, Any]) -> None:
    for name in sorted(info["missing_keys"]):
        raise BadWeightsError(name, "it is missing")
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise BadWeightsError(name, f"its shape is {tuple(found)}, the configuration says {tuple(expected)}")


def read_config(folder: Path) -> str:
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise BadConfigError(f"config.json cannot be read ({type(error).__name__})") from error
    return text


class Progress:
    """Bytes read of those that are to be read; never more than these, though a tied embedding may be read twice."""

    def __init__(self, total_bytes: int, report: Callable[[int, int], None]) -> None:
        self._total = total_bytes
        self._done = 0
        self._told = 0
        self._report = report

    def add(self, num_bytes: int) -> None:
        self._done = min(self._total, self._done + num_bytes)
        if self._done - self._told >= PROGRESS_BYTES:
            self._tell()

    def finish(self) -> None:
        self._done = self._total
        self._tell()

    def _tell(self) -> None:
        self._told = self._done
        self._report(self._done, self._total)
