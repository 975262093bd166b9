"""A model whose every answer depends on every row that every layer has kept, and in which order.

A layer's output at a position is a hash of its own output at the position before (what it keeps: its KV), of the row
that comes in, and of the position. A stage that lost, repeated, mixed up or kept an old row answers differently from
there on, as a real one would, and how the layers are divided between stages makes no difference.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.scheduler.state import ModelFacts
from coordinator.sessions import Order
from protocol.manifest import MIN_CHUNK_BYTES, Manifest, ManifestFile, TensorSpec, encode_manifest, manifest_hash
from protocol.values import FinishReason, LayerRange, Sampling
from tests.fakes import pool_facts as facts

NUM_LAYERS = 6
HIDDEN_SIZE = 4
ROW_BYTES = 4 * HIDDEN_SIZE
NAN_ROW = struct.pack("<f", float("nan")) * HIDDEN_SIZE
VOCABULARY = 997
POISON_TOKEN = VOCABULARY + 3
"""Never sampled. A prompt with it gives no numbers, on any machine."""
DEADLY_TOKEN = POISON_TOKEN + 1
"""Never sampled, either. The worker that embeds it dies."""
VOCAB_SIZE = DEADLY_TOKEN + 1
STOP_TOKENS = tuple(range(3, 23))
"""A fiftieth of the vocabulary: answers are of all lengths."""
HEADER_BYTES = 16
LAYER_BYTES = 32
MANIFEST_URL = "manifest"


def row_of_token(token: int) -> bytes:
    """The embedding."""
    return struct.pack("<i", token).ljust(ROW_BYTES, b"\0")


def token_of_row(row: bytes, sampling: Sampling, position: int) -> int:
    """The token at `position`: by the row before it and, unless greedy, by seed and position."""
    drawn = (sampling.seed, position) if sampling.temperature else (0, 0)
    digest = hashlib.blake2b(row + struct.pack("<QQ", *drawn), digest_size=8).digest()
    return int.from_bytes(digest, "little") % VOCABULARY + 3


Block = tuple[tuple[bytes, ...], ...]
"""Of each layer of a stage, what it keeps of some positions."""


class Layers:
    """What a stage keeps of one session: each layer's outputs, by position."""

    def __init__(self, layers: LayerRange) -> None:
        self._numbers = range(layers.start, layers.stop)
        self._kept: list[list[bytes]] = [[] for _ in self._numbers]

    @property
    def length(self) -> int:
        """Positions that are computed."""
        return len(self._kept[0])

    def forward(self, row: bytes) -> bytes:
        """The stage's output at the next position. What is not a number stays so."""
        position = self.length
        for number, kept in zip(self._numbers, self._kept, strict=True):
            before = kept[-1] if kept else b""
            if row != NAN_ROW:
                text = before + row + struct.pack("<II", number, position)
                row = hashlib.blake2b(text, digest_size=ROW_BYTES).digest()
            kept.append(row)
        return row

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        for kept in self._kept:
            del kept[length:]

    def block(self, start: int, stop: int) -> Block:
        """What is kept of these positions."""
        return tuple(tuple(kept[start:stop]) for kept in self._kept)

    def append(self, block: Block) -> None:
        """The next positions, as other layers of the same numbers have computed them."""
        for kept, rows in zip(self._kept, block, strict=True):
            kept += rows


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: tuple[int, ...]
    finish_reason: FinishReason


def undisturbed(order: Order) -> Answer:
    """What one machine that holds the whole model would answer."""
    layers = Layers(LayerRange(0, NUM_LAYERS))
    row = [layers.forward(row_of_token(token)) for token in order.prompt][-1]
    tokens: list[int] = []
    while True:
        tokens.append(token_of_row(row, order.sampling, layers.length))
        if tokens[-1] in order.stop_tokens:
            return Answer(tuple(tokens), FinishReason.STOP)
        if len(tokens) == order.max_new_tokens:
            return Answer(tuple(tokens), FinishReason.LENGTH)
        row = layers.forward(row_of_token(tokens[-1]))


# ---------------------------------------------------------------- as the pool and its mirror know it


@dataclass(frozen=True)
class Published:
    """The model on the pool's mirror: pages by their URL."""

    facts: ModelFacts
    digest: str
    pages: dict[str, bytes]


@functools.cache
def published(pool_url: str) -> Published:
    body = bytes(range(HEADER_BYTES + NUM_LAYERS * LAYER_BYTES))
    files = {"config.json": b"{}", "model.safetensors": body}
    tensors = tuple(
        TensorSpec(_tensor(n), 1, "F32", (LAYER_BYTES // 4,), _start(n), _start(n + 1)) for n in range(NUM_LAYERS)
    )
    manifest = Manifest(
        version=1, name="toy", architecture="Toy", config_json="{}", num_layers=NUM_LAYERS, hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE, context_length=1000, chunk_bytes=MIN_CHUNK_BYTES,
        files=(_file("config.json", b"{}", 0), _file("model.safetensors", body, HEADER_BYTES)), tensors=tensors,
    )  # fmt: skip
    data = encode_manifest(manifest)
    digest = manifest_hash(data)
    base = f"{pool_url}/weights/{digest}"
    pages = {f"{base}/manifest": data} | {f"{base}/files/{name}": content for name, content in files.items()}
    return Published(facts.model(NUM_LAYERS, digest=digest), digest, pages)


def tensor_names(layers: LayerRange) -> tuple[str, ...]:
    return tuple(_tensor(number) for number in range(layers.start, layers.stop))


def tenant_of(session_id: str) -> str:
    """Whose request that is: told by its number, as workers are told of sessions only."""
    return f"tenant {int(session_id, 16) % 2}"


def rows_of(payload: bytes | memoryview, is_tokens: bool) -> list[bytes]:
    """A frame's payload as rows of the model."""
    data = bytes(payload)
    if is_tokens:
        return [row_of_token(token) for (token,) in struct.iter_unpack("<i", data)]
    return [data[start : start + ROW_BYTES] for start in range(0, len(data), ROW_BYTES)]


def joined(rows: Sequence[bytes]) -> bytes:
    return b"".join(rows)


def _tensor(layer: int) -> str:
    return f"model.layers.{layer}.weight"


def _start(layer: int) -> int:
    return HEADER_BYTES + layer * LAYER_BYTES


def _file(path: str, content: bytes, header_bytes: int) -> ManifestFile:
    return ManifestFile(path, len(content), (hashlib.sha256(content).hexdigest(),), header_bytes)
