"""The tensors of a folder's safetensors files, by name. Needs torch: only the converter's process imports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from coordinator.models.build import weight_files
from coordinator.models.errors import ConversionError


class StoredTensors:
    """Each is read when it is asked for. A context: the files are open in it."""

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        self._paths = list(weight_files(folder).values())
        self._files: dict[str, Any] = {}

    def __enter__(self) -> StoredTensors:
        for path in self._paths:
            file = safe_open(path, framework="pt")
            names: list[str] = file.keys()  # type: ignore[no-untyped-call]
            self._files.update(dict.fromkeys(names, file))
        return self

    def __exit__(self, *error: object) -> None:
        self._files.clear()  # with the last one that names it, a file is closed

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Sequence[str]:
        """File by file, so that each is read once from front to back."""
        return list(self._files)

    def read(self, name: str) -> Tensor:
        """Raises ConversionError if there is none of that name."""
        if name not in self._files:
            raise ConversionError(self._name, f"the tensor {name} is missing")
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor
