"""A model's manifest: every byte of its weights, by SHA-256, and where each tensor lies.

A node keeps a sparse copy of each weight file, of the same name and size. It downloads only the chunks that cover
the header and the tensors of its layers, and checks each chunk against its digest before anyone reads it. The
manifest itself is named by its SHA-256 (ManifestHash), which comes over the control connection: whoever serves the
bytes, mirror or stranger, cannot change one of them unseen.

The weight files are safetensors files: 8 bytes with the length of a JSON header, the header, then the tensors one
after the other without holes (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.errors import ProtocolError
from protocol.values import Bytes, Count, Digest, LayerRange, ManifestHash, Name, Quantisation, Value

MAX_MANIFEST_BYTES = 32 * 2**20
"""About 250,000 tensors; the largest open models have 140,000."""
MIN_CHUNK_BYTES = 2**20
MAX_CHUNK_BYTES = 16 * 2**20
TARGET_CHUNKS = 32 * 2**10
"""The smallest chunk size that keeps to this is taken: 2 MB of digests."""
MAX_CHUNKS = 128 * 2**10
MAX_FILES = 4096
MAX_TENSORS = 2**18
MAX_SMALL_FILE_BYTES = 64 * 2**20

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element by safetensors' name of the type (safetensors 0.8, `Dtype::bitsize`)."""

FileName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,126}[A-Za-z0-9_]\Z")]
"""A bare name that is safe on every system: no folder, no leading or trailing dot."""
TensorName = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Dimension = Annotated[int, Meta(ge=0, le=2**48)]
_RESERVED = re.compile(r"(?i)\A(con|prn|aux|nul|com\d|lpt\d)(\.|\Z)")
"""Windows opens a device instead of a file of such a name, whatever its extension."""


class ManifestError(ProtocolError):
    """A manifest that is refused as a whole; `field` says where, `detail` gives limit and value seen."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"manifest refused ({self.field}): {self.detail}"


class ManifestFile(Value, frozen=True):
    """One file. `header_bytes` is where the tensors begin; 0 marks a small file that is no weights: taken whole."""

    path: FileName
    size_bytes: Annotated[int, Meta(ge=1, le=2**53)]
    chunk_digests: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=MAX_CHUNKS)]
    header_bytes: Bytes = 0


class TensorSpec(Value, frozen=True, array_like=True):
    """A tensor: bytes [start, stop) of file number `file`. An array on the wire, for there are very many."""

    name: TensorName
    file: Count
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=16)]
    start: Bytes
    stop: Bytes

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Manifest(Value, frozen=True, omit_defaults=True):
    """What a model is. `config_json` is its config.json, from which the runtime builds the layers.

    `quantisation` is how nodes pack the weights when they load them; builds that do not know it refuse the manifest."""

    version: Literal[1]
    name: Name
    architecture: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_]{1,128}\Z")]
    config_json: Annotated[str, Meta(min_length=2, max_length=2**20)]
    num_layers: Annotated[int, Meta(ge=1, le=10_000)]
    hidden_size: Annotated[int, Meta(ge=1, le=2**24)]
    vocab_size: Annotated[int, Meta(ge=1, le=2**31)]
    context_length: Annotated[int, Meta(ge=1, le=2**31)]
    chunk_bytes: Annotated[int, Meta(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)]
    files: Annotated[tuple[ManifestFile, ...], Meta(min_length=1, max_length=MAX_FILES)]
    tensors: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    quantisation: Quantisation | None = None


# ---------------------------------------------------------------- bytes

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON. Raises ManifestError for one that `decode_manifest` would refuse."""
    data = _encoder.encode(manifest)
    decode_manifest(data)  # constructing a struct checks no value; decoding does
    return data


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in `data`, checked in full; raises ManifestError for anything else."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError("$", f"{len(data)} bytes, limit {MAX_MANIFEST_BYTES}")
    try:
        manifest = _decoder.decode(data)
    except msgspec.ValidationError as error:
        detail, _, field = str(error).partition(" - at ")
        raise ManifestError(field.strip("`") or "$", detail[:200]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ManifestError("$", f"not JSON: {str(error)[:200]}") from None
    _check(manifest)
    return manifest


def manifest_hash(data: bytes) -> ManifestHash:
    """The name of the manifest in `data`: its SHA-256."""
    return ManifestHash(hashlib.sha256(data).hexdigest())


# ---------------------------------------------------------------- what the types alone cannot say


def _check(manifest: Manifest) -> None:
    if manifest.chunk_bytes & (manifest.chunk_bytes - 1):
        raise ManifestError("chunk_bytes", f"{manifest.chunk_bytes} is no power of two")
    _check_files(manifest)
    _check_tensors(manifest)


def _check_files(manifest: Manifest) -> None:
    seen: set[str] = set()
    for number, file in enumerate(manifest.files):
        _check_file(f"files[{number}]", file, manifest.chunk_bytes)
        if file.path.lower() in seen:
            raise ManifestError(f"files[{number}].path", f"{file.path} occurs twice")
        seen.add(file.path.lower())
    total = sum(len(file.chunk_digests) for file in manifest.files)
    if total > MAX_CHUNKS:
        raise ManifestError("files", f"{total} chunks, limit {MAX_CHUNKS}")


def _check_file(field: str, file: ManifestFile, chunk_bytes: int) -> None:
    if _RESERVED.search(file.path):
        raise ManifestError(f"{field}.path", f"{file.path} is the name of a device on some systems")
    expected = num_chunks(file.size_bytes, chunk_bytes)
    if len(file.chunk_digests) != expected:
        detail = f"{len(file.chunk_digests)} digests for {expected} chunks"
        raise ManifestError(f"{field}.chunk_digests", detail)
    if file.header_bytes > file.size_bytes:
        raise ManifestError(f"{field}.header_bytes", f"{file.header_bytes} of a file of {file.size_bytes} bytes")
    if not file.header_bytes and file.size_bytes > MAX_SMALL_FILE_BYTES:
        detail = f"{file.size_bytes} bytes without a header, limit {MAX_SMALL_FILE_BYTES}"
        raise ManifestError(f"{field}.size_bytes", detail)


def _check_tensors(manifest: Manifest) -> None:
    by_file: list[list[TensorSpec]] = [[] for _ in manifest.files]
    names: set[str] = set()
    for number, tensor in enumerate(manifest.tensors):
        _check_tensor(f"tensors[{number}]", tensor, manifest.files)
        if tensor.name in names:
            raise ManifestError(f"tensors[{number}].name", f"{tensor.name[:80]} occurs twice")
        names.add(tensor.name)
        by_file[tensor.file].append(tensor)
    for number, tensors in enumerate(by_file):
        _check_cover(f"files[{number}]", manifest.files[number], tensors)


def _check_tensor(field: str, tensor: TensorSpec, files: tuple[ManifestFile, ...]) -> None:
    if tensor.file >= len(files) or not files[tensor.file].header_bytes:
        raise ManifestError(f"{field}.file", f"file {tensor.file} is not a weight file of this manifest")
    size = tensor_bytes(tensor.dtype, tensor.shape)
    if size is None:
        raise ManifestError(f"{field}.dtype", f"{tensor.dtype} is unknown or does not fill whole bytes")
    if tensor.stop - tensor.start != size:
        detail = f"bytes {tensor.start} to {tensor.stop} for a tensor of {size} bytes"
        raise ManifestError(f"{field}.stop", detail)


def _check_cover(field: str, file: ManifestFile, tensors: list[TensorSpec]) -> None:
    """A weight file is its header and its tensors, without overlap, hole or remainder."""
    if not file.header_bytes:
        return
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))
    bounds = [file.header_bytes, *(edge for tensor in ordered for edge in (tensor.start, tensor.stop)), file.size_bytes]
    for stop, start in pairwise(bounds):
        if stop > start:
            raise ManifestError(field, f"tensors overlap or lie outside the file between bytes {start} and {stop}")
    for stop, start in zip(bounds[::2], bounds[1::2], strict=True):
        if stop != start:
            raise ManifestError(field, f"bytes {stop} to {start} belong to no tensor")


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int | None:
    """Size of a tensor; None for an unknown type or one that ends within a byte."""
    bits = DTYPE_BITS.get(dtype, 0) * math.prod(shape)
    return None if dtype not in DTYPE_BITS or bits % 8 else bits // 8


# ---------------------------------------------------------------- chunks


def chunk_bytes_for(sizes_bytes: Iterable[int]) -> int:
    """The chunk size, in bytes, for files of these sizes: the smallest with at most TARGET_CHUNKS chunks."""
    sizes = list(sizes_bytes)
    size = MIN_CHUNK_BYTES
    while size < MAX_CHUNK_BYTES and sum(num_chunks(total, size) for total in sizes) > TARGET_CHUNKS:
        size *= 2
    return size


def num_chunks(size_bytes: int, chunk_bytes: int) -> int:
    return -(-size_bytes // chunk_bytes)


def chunk_span(manifest: Manifest, file: int, chunk: int) -> tuple[int, int]:
    """Bytes [start, stop) of chunk `chunk` of file number `file`; only a file's last chunk is shorter."""
    start = chunk * manifest.chunk_bytes
    return start, min(start + manifest.chunk_bytes, manifest.files[file].size_bytes)


def chunks_of(manifest: Manifest, tensor_names: Iterable[str]) -> dict[int, list[int]]:
    """What a node needs for these tensors: by file number, its chunk numbers in ascending order.

    These are the small files whole and, of each weight file with one of the tensors, the chunks of its header and of
    those tensors. A weight file without any is left out. Raises ManifestError for a name the model does not have."""
    wanted = {number: set(_whole(manifest, number)) for number, file in enumerate(manifest.files) if _is_small(file)}
    by_name = {tensor.name: tensor for tensor in manifest.tensors}
    for name in tensor_names:
        if name not in by_name:
            raise ManifestError("tensors", f"there is no tensor {name[:80]}")
        _want(wanted, manifest, by_name[name])
    return {number: sorted(chunks) for number, chunks in sorted(wanted.items())}


def _want(wanted: dict[int, set[int]], manifest: Manifest, tensor: TensorSpec) -> None:
    if tensor.file not in wanted:
        wanted[tensor.file] = set(_covering(manifest, 0, manifest.files[tensor.file].header_bytes))
    wanted[tensor.file].update(_covering(manifest, tensor.start, tensor.stop))


def _covering(manifest: Manifest, start: int, stop: int) -> range:
    return range(start // manifest.chunk_bytes, num_chunks(stop, manifest.chunk_bytes) if stop > start else 0)


def _whole(manifest: Manifest, file: int) -> range:
    return range(len(manifest.files[file].chunk_digests))


def _is_small(file: ManifestFile) -> bool:
    return file.header_bytes == 0


# ---------------------------------------------------------------- which tensors belong to which layers


class Part(Enum):
    """What of the model a tensor is; a tensor of a layer has its number instead."""

    EMBEDDING = auto()
    HEAD = auto()
    """Final norm and lm_head: what the last stage has on top of its layers."""
    FOREIGN = auto()
    """Not used for text: vision towers, extra layers for multi-token prediction."""


_LAYER = re.compile(r"\A((?:.*\.)?(?:layers|h|blocks))\.(\d{1,5})\.")
_FOREIGN = re.compile(r"vision|visual|image|audio|speech|multi_modal|mm_projector|\bmtp\b")
_EMBEDDING = re.compile(r"(embed_tokens|\bwte|\bwpe|word_embeddings?|embed_in|embed_positions|\bembeddings?)\b")
_LM_HEAD = re.compile(r"\b(lm_head|embed_out)\b")


def parts_of(manifest: Manifest) -> dict[str, int | Part]:
    """By tensor name: the number of its layer, or which other part of the model it is.

    Goes by the names that transformers gives: the decoder's layers are the numbered list `...layers.N.` (or `h`,
    `blocks`) that has all of 0 to num_layers - 1; of several such lists, the one with the most elements."""
    prefix = _decoder_prefix(manifest)
    return {tensor.name: _part(tensor.name, prefix, manifest.num_layers) for tensor in manifest.tensors}


def tensors_for(manifest: Manifest, layers: LayerRange) -> list[str]:
    """Names of the tensors that a stage with these layers needs, the ends' own parts included.

    The last stage of a model without an lm_head of its own needs the embedding, which is tied to it."""
    parts = parts_of(manifest)
    wanted: set[int | Part] = set(range(layers.start, layers.stop))
    if layers.start == 0:
        wanted.add(Part.EMBEDDING)
    if layers.stop == manifest.num_layers:
        wanted |= {Part.HEAD} if has_own_head(manifest) else {Part.HEAD, Part.EMBEDDING}
    return [name for name, part in parts.items() if part in wanted]


def has_own_head(manifest: Manifest) -> bool:
    """Whether the model stores an lm_head, rather than using its embedding as one."""
    return any(_LM_HEAD.search(tensor.name) for tensor in manifest.tensors)


def _decoder_prefix(manifest: Manifest) -> str:
    numbers: dict[str, set[int]] = {}
    numel: dict[str, int] = {}
    for prefix, number, tensor in _numbered(manifest):
        numbers.setdefault(prefix, set()).add(number)
        numel[prefix] = numel.get(prefix, 0) + tensor.numel
    complete = [prefix for prefix, seen in numbers.items() if seen.issuperset(range(manifest.num_layers))]
    if not complete:
        raise ManifestError("num_layers", f"the tensors do not have {manifest.num_layers} numbered layers")
    return max(complete, key=lambda prefix: numel[prefix])


def _numbered(manifest: Manifest) -> Iterator[tuple[str, int, TensorSpec]]:
    for tensor in manifest.tensors:
        match = _LAYER.match(tensor.name)
        if match and not _FOREIGN.search(match[1]):
            yield match[1], int(match[2]), tensor


def _part(name: str, prefix: str, num_layers: int) -> int | Part:
    match = _LAYER.match(name)
    if match and match[1] == prefix:
        number = int(match[2])
        return number if number < num_layers else Part.FOREIGN
    if match or _FOREIGN.search(name):
        return Part.FOREIGN
    return Part.EMBEDDING if _EMBEDDING.search(name) else Part.HEAD
