"""A checkpoint folder: which tensors a slice needs, and reading exactly those.

Only safetensors are read: the format holds no code. Files may be sparse, so nothing but the planned tensors is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from client.runtime.cut import CutModel
from client.runtime.errors import BadWeightsError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TEXT_PREFIXES = (("", ""), ("language_model.", ""), ("model.language_model.", "model."))
"""(prefix in a checkpoint, what the text model calls it): multimodal checkpoints hold their text part under one."""


def plan_tensors(cut: CutModel, names: Iterable[str]) -> dict[str, str]:
    """{name in the checkpoint: name to hand to transformers} of what the cut needs, out of all `names`.

    Follows transformers' renaming and merging rules (experts' single tensors become one). Raises BadWeightsError if the
    checkpoint has none of the slice's tensors."""
    names = list(names)
    belongs = _membership(cut)
    for prefix, replacement in TEXT_PREFIXES:
        renamed = {name: replacement + name[len(prefix) :] for name in names if name.startswith(prefix)}
        plan = {name: inner for name, inner in renamed.items() if belongs(inner)}
        if plan:
            return plan
    raise BadWeightsError(f"{cut.layers_path}.{cut.start}", "the checkpoint has none of this slice's tensors")


def _membership(cut: CutModel) -> Callable[[str], bool]:
    present = cut.model.state_dict()
    rules = get_model_conversion_mapping(cut.model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = cut.model.base_model_prefix
    indices = "|".join(str(index) for index in range(cut.start, cut.stop)) or "(?!)"
    own_layer = re.compile(rf"{re.escape(cut.layers_path)}\.({indices})\.")

    def belongs(name: str) -> bool:
        if name in present or own_layer.match(name):
            return True
        target, _ = rename_source_key(name, renamings, converters, prefix, present)
        return target in present

    return belongs


@dataclass
class Checkpoint:
    """An opened folder: where each tensor is. The header of a sparse file is always there, its holes are not."""

    folder: Path
    file_of: Mapping[str, str]
    handles: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Raises BadWeightsError if neither an index nor a single file can be read."""
        if (folder / INDEX_FILE).exists():
            return cls(folder, _read_index(folder / INDEX_FILE))
        checkpoint = cls(folder, {})
        keys = checkpoint._handle(SINGLE_FILE, SINGLE_FILE).keys()
        checkpoint.file_of = dict.fromkeys(keys, SINGLE_FILE)
        return checkpoint

    def lazy(self, name: str, on_read: Callable[[int], None]) -> LazyTensor:
        """The tensor, unread; `on_read` gets its bytes afterwards. Raises BadWeightsError if it is not there."""
        return LazyTensor(name, self._slice(name), on_read)

    def size_bytes(self, name: str) -> int:
        """The tensor's size, from the header alone. Raises BadWeightsError if it is not there."""
        found = self._slice(name)
        num_elements = 1
        for length in found.get_shape():
            num_elements *= length
        return num_elements * _itemsize(found.get_dtype())

    def close(self) -> None:
        self.handles.clear()

    def _slice(self, name: str) -> Any:
        handle = self._handle(self.file_of[name], name)
        try:
            return handle.get_slice(name)
        except SafetensorError:
            raise BadWeightsError(name, f"{self.file_of[name]} does not hold it") from None

    def _handle(self, file: str, tensor: str) -> Any:
        if file not in self.handles:
            try:
                self.handles[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise BadWeightsError(tensor, f"{file} cannot be read ({type(error).__name__})") from error
        return self.handles[file]


class LazyTensor:
    """A tensor that is read when transformers indexes it. Remembers its own failure, which transformers would bury in
    a report about many."""

    def __init__(self, name: str, found: Any, on_read: Callable[[int], None]) -> None:
        self.name = name
        self.fault: BadWeightsError | None = None
        self._found = found
        self._on_read = on_read

    def __getitem__(self, index: Any) -> Tensor:
        try:
            tensor: Tensor = self._found[index]
        except (SafetensorError, OSError) as error:
            self.fault = BadWeightsError(self.name, f"it cannot be read ({type(error).__name__})")
            raise self.fault from error
        if tensor.is_floating_point() and not _is_finite(tensor):
            self.fault = BadWeightsError(self.name, "it holds values that are not finite")
            raise self.fault
        self._on_read(tensor.nbytes)
        return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Minimum and maximum are finite exactly if all are, and need no mask as large as the tensor."""
    if tensor.numel() == 0 or tensor.element_size() < 2:  # no aminmax for the 8-bit formats
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeightsError(INDEX_FILE, f"the index cannot be read ({type(error).__name__})") from error
    for name, file in files.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BadWeightsError(name, "the index points outside the folder or to another format")
    return files


def _itemsize(dtype: str) -> int:
    """Bytes per element of a safetensors dtype such as BF16, F8_E4M3 or BOOL."""
    digits = re.match(r"[A-Z]+(\d+)", dtype)
    return int(digits[1]) // 8 if digits else 1
