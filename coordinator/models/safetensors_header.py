"""Reads what a safetensors file says it holds, without torch, and checks it against the file's size.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}` with an optional
`__metadata__`, then the tensors without holes (https://huggingface.co/docs/safetensors, "Format"). A file that ends
too early (an aborted download) and one that goes on after its last tensor are both refused.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from coordinator.models.errors import BrokenModelError, shown
from protocol.manifest import Dimension, TensorSpec, tensor_bytes
from protocol.values import Bytes

MAX_HEADER_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Header:
    """`header_bytes` is where the tensors begin; the offsets in `tensors` count from the start of the file."""

    header_bytes: int
    size_bytes: int
    tensors: tuple[TensorSpec, ...]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=16)]
    data_offsets: tuple[Bytes, Bytes]


def read_header(path: Path, name: str, file_number: int = 0) -> Header:
    """The header of the safetensors file at `path`; `name` is what errors call it.

    Raises BrokenModelError, naming file and tensor, for anything that is not one whole safetensors file; OSError if
    the file cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(name, file.read(_LENGTH.size), size)
        text = file.read(length)
    header_bytes = _LENGTH.size + length
    entries = _parse(name, text)
    tensors = [_tensor(name, file_number, header_bytes, *item) for item in entries.items()]
    _check_cover(name, header_bytes, size, tensors)
    return Header(header_bytes, size, tuple(tensors))


def _header_length(name: str, prefix: bytes, size: int) -> int:
    if len(prefix) < _LENGTH.size:
        raise BrokenModelError(name, f"the file has {size} bytes, less than the 8 that begin a safetensors file")
    (length,) = _LENGTH.unpack(prefix)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise BrokenModelError(name, f"the header size is {length} bytes, allowed are 2 to {MAX_HEADER_BYTES}")
    if _LENGTH.size + length > size:
        raise BrokenModelError(name, f"the header size is {length} bytes in a file of {size} bytes")
    return int(length)


def _parse(name: str, text: bytes) -> dict[str, _Entry]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except _DuplicateError as error:
        raise BrokenModelError(name, f"the header has {shown(error)!r} twice") from None
    except (ValueError, RecursionError):
        raise BrokenModelError(name, "the header is not valid JSON") from None
    if not isinstance(value, dict):
        raise BrokenModelError(name, "the header is not a JSON object")
    value.pop("__metadata__", None)
    return {tensor: _entry(name, tensor, entry) for tensor, entry in value.items()}


def _entry(name: str, tensor: str, entry: object) -> _Entry:
    try:
        return msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        raise BrokenModelError(name, f"tensor {shown(tensor)}: {shown(error)}") from None


class _DuplicateError(ValueError):
    """A key of the header that occurs twice: readers would disagree on which one counts."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateError(key)
        result[key] = value
    return result


def _tensor(name: str, file_number: int, header_bytes: int, tensor: str, entry: _Entry) -> TensorSpec:
    start, stop = (header_bytes + offset for offset in entry.data_offsets)
    size = tensor_bytes(entry.dtype, entry.shape)
    if size is None:
        _refuse(name, tensor, f"unknown type {shown(entry.dtype)!r}")
    if stop - start != size:
        _refuse(name, tensor, f"{stop - start} bytes for a shape and type of {size} bytes")
    return TensorSpec(tensor, file_number, entry.dtype, entry.shape, start, stop)


def _check_cover(name: str, header_bytes: int, size: int, tensors: list[TensorSpec]) -> None:
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))
    stop = ordered[-1].stop if ordered else header_bytes
    if stop > size:
        missing = next(tensor for tensor in ordered if tensor.stop > size)
        _refuse(name, missing.name, f"it ends at byte {missing.stop}, the file at byte {size}: the file is truncated")
    if stop < size:
        raise BrokenModelError(name, f"the file is longer than declared: {size} bytes instead of {stop}")
    if ordered and ordered[0].start != header_bytes:
        _refuse(name, ordered[0].name, f"{ordered[0].start - header_bytes} bytes before it belong to no tensor")
    for left, right in pairwise(ordered):
        if left.stop != right.start:
            problem = "overlaps" if left.stop > right.start else "leaves a hole after"
            _refuse(name, right.name, f"it {problem} {shown(left.name)}")


def _refuse(name: str, tensor: str, detail: str) -> NoReturn:
    raise BrokenModelError(name, f"tensor {shown(tensor)}: {detail}")
