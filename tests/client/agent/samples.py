"""Values that the agent's tests share: devices, a small model, what the pool asks, data frames."""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass

from client.agent.identity import Identity
from protocol import messages as msg
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.manifest import MIN_CHUNK_BYTES, Manifest, ManifestFile, TensorSpec, encode_manifest, manifest_hash
from protocol.values import (
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    Hop,
    LayerBenchmark,
    LayerRange,
    NodeId,
    SessionId,
    Variant,
)

MIB = 2**20
IDENTITY = Identity.of(bytes(32))
NODE, LEFT, RIGHT = IDENTITY.node_id, NodeId("b" * 32), NodeId("c" * 32)
SESSION, OTHER_SESSION = SessionId("1" * 32), SessionId("2" * 32)
CPU = DeviceSpec(DeviceId("cpu"), DeviceKind.CPU, "A processor", 100 * MIB, Variant.FLOAT32)
GPU = DeviceSpec(DeviceId("cuda:0"), DeviceKind.CUDA, "A graphics card", 200 * MIB, Variant.BFLOAT16)
GPU_1 = DeviceSpec(DeviceId("cuda:1"), DeviceKind.CUDA, "Another card", 200 * MIB, Variant.BFLOAT16)
BENCHMARK = LayerBenchmark((BatchTime(1, 0.001),), 0.0001, 0.002)
NUM_LAYERS = 4
HIDDEN_SIZE = 8
HEADER_BYTES = 100
LAYER_BYTES = 1_500_000


@dataclass(frozen=True, repr=False)
class Model:
    """A model as a mirror has it: the manifest and every file's bytes."""

    manifest: Manifest
    manifest_bytes: bytes
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        return manifest_hash(self.manifest_bytes)

    @property
    def weights(self) -> bytes:
        return self.files["model.safetensors"]

    def tensor_names(self, *layers: int) -> tuple[str, ...]:
        return tuple(f"model.layers.{layer}.weight" for layer in layers)


@functools.cache
def model(name: str = "tiny") -> Model:
    """Four layers of 1.5 MB in one file of six chunks, and a small config file."""
    body = random.Random(name).randbytes(HEADER_BYTES + NUM_LAYERS * LAYER_BYTES)
    files = {"config.json": b"{}", "model.safetensors": body}
    tensors = [
        TensorSpec(f"model.layers.{n}.weight", 1, "F16", (LAYER_BYTES // 2,), _start(n), _start(n + 1))
        for n in range(NUM_LAYERS)
    ]
    manifest = Manifest(
        version=1,
        name=name,
        architecture="LlamaForCausalLM",
        config_json="{}",
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN_SIZE,
        vocab_size=16,
        context_length=128,
        chunk_bytes=MIN_CHUNK_BYTES,
        files=(_file("config.json", files["config.json"], 0), _file("model.safetensors", body, HEADER_BYTES)),
        tensors=tuple(tensors),
    )
    return Model(manifest, encode_manifest(manifest), files)


def _start(layer: int) -> int:
    return HEADER_BYTES + layer * LAYER_BYTES


def _file(path: str, content: bytes, header_bytes: int) -> ManifestFile:
    chunks = [content[start : start + MIN_CHUNK_BYTES] for start in range(0, len(content), MIN_CHUNK_BYTES)]
    return ManifestFile(path, len(content), tuple(hashlib.sha256(c).hexdigest() for c in chunks), header_bytes)


# ---------------------------------------------------------------- what the pool asks


def measure(device: DeviceSpec = CPU, digest: str | None = None) -> msg.MeasureDevice:
    return msg.MeasureDevice(device.device_id, digest or model().digest, device.variant)


def assign(generation: int = 1, start: int = 0, stop: int = 2, device: DeviceSpec = CPU) -> msg.AssignSlice:
    layers = LayerRange(start, stop)
    digest = model().digest
    return msg.AssignSlice(device.device_id, generation, "tiny", digest, device.variant, layers, NUM_LAYERS)


def open_session(
    session_id: str = SESSION,
    epoch: int = 1,
    stage: int = 1,
    num_stages: int = 3,
    device: DeviceSpec = CPU,
    generation: int = 1,
    previous: str = LEFT,
    following: Hop | None = None,
) -> msg.OpenSession:
    """A middle stage between LEFT and RIGHT, unless told otherwise."""
    return msg.OpenSession(
        session_id=session_id,
        epoch=epoch,
        device_id=device.device_id,
        generation=generation,
        stage=stage,
        num_stages=num_stages,
        num_prompt_tokens=4,
        num_reserved_tokens=16,
        previous=Hop(previous, max(0, stage - 1)),
        next=following or Hop(RIGHT, stage + 1, "ws://127.0.0.1:1", "ticket-1"),
    )


# ---------------------------------------------------------------- data frames


def segment(
    session_id: SessionId = SESSION, position: int = 0, num_tokens: int = 1, epoch: int = 1, stage: int = 1
) -> Segment:
    return Segment(session_id, epoch, position, num_tokens, 0, stage, Phase.PREFILL)


def rows(*segments: Segment, row_width: int = HIDDEN_SIZE, dtype: WireDtype = WireDtype.FLOAT32) -> bytes:
    """A frame of hidden states whose every byte says which row it belongs to."""
    num_rows = sum(s.num_tokens for s in segments)
    payload = b"".join(bytes([row % 256]) * (row_width * dtype.itemsize) for row in range(num_rows))
    return encode_frame(Frame(FrameKind.HIDDEN, dtype, row_width, segments, payload))


def tokens(*segments: Segment) -> bytes:
    """A frame of token ids, for a head."""
    num_rows = sum(s.num_tokens for s in segments)
    return encode_frame(Frame(FrameKind.TOKENS, WireDtype.INT32, 1, segments, bytes(4 * num_rows)))
