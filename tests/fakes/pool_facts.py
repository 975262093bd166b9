"""Small models, devices and measurements with round numbers, for tests of the scheduler and what stands on it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol import PROTOCOL_VERSION
from protocol.identity import hello_bytes, node_id_of
from protocol.messages import Hello
from protocol.values import (
    BatchTime,
    DeviceId,
    DeviceKind,
    DeviceSpec,
    HeldSlice,
    LayerBenchmark,
    NodeId,
    SessionId,
    Variant,
)
from shell.keys import public_key_of, sign

CPU = DeviceId("cpu")
DIGEST = "2c" * 32
GIB = 2**30

_KEYS = [bytes([seed]) * 32 for seed in range(128)]
_IDENTITIES = sorted((node_id_of(public_key_of(private)), private) for private in _KEYS)
"""Node ids follow from keys. Sorted, so that node 2 comes behind node 1 wherever ids decide."""


def model(num_layers: int = 8, *, digest: str = DIGEST, context_length: int = 1000) -> ModelFacts:
    """Each layer has 1,000,000 weights; KV, embedding and head are small beside them."""
    return ModelFacts(
        name=f"model-{digest[:2]}",
        manifest_hash=digest,
        context_length=context_length,
        layer_numels=(1_000_000,) * num_layers,
        embedding_numel=100_000,
        head_numel=100_000,
        kv_numel_per_token=10,
    )


def node_id(number: int) -> NodeId:
    return _IDENTITIES[number][0]


def number_of(node: str) -> int:
    return next(number for number, (known, _) in enumerate(_IDENTITIES) if known == node)


def private_key(number: int) -> bytes:
    return _IDENTITIES[number][1]


def session_id(number: int) -> SessionId:
    return SessionId(f"{number:032x}")


def key(number: int, device_id: DeviceId = CPU) -> DeviceKey:
    return DeviceKey(node_id(number), device_id)


def spec(
    max_layers: int | None = None,
    *,
    device_id: DeviceId = CPU,
    memory_bytes: int = GIB,
    variant: Variant = Variant.FLOAT32,
) -> DeviceSpec:
    return DeviceSpec(device_id, DeviceKind.CPU, "a CPU", memory_bytes, variant, max_layers)


def benchmark(layer_s: float = 0.01, head_s: float = 0.0) -> LayerBenchmark:
    return LayerBenchmark((BatchTime(1, layer_s),), layer_s / 10, head_s)


def hello(
    number: int,
    *devices: DeviceSpec,
    name: str = "",
    address: str | None = None,
    held: Sequence[HeldSlice] = (),
    version: int = PROTOCOL_VERSION,
) -> Hello:
    """With a signature that proves nothing: the core looks at none. `signed` makes it good."""
    return Hello(
        protocol_version=version,
        node_id=node_id(number),
        public_key=public_key_of(private_key(number)),
        signature="0" * 128,
        app_version="test",
        name=name or f"node {number}",
        devices=devices or (spec(),),
        peer_address=address,
        peer_ticket="a-ticket" if address else None,
        peer_fingerprint="4e" * 32 if address else None,
        held=tuple(held),
    )


def signed(hello: Hello, nonce: str, audience: str = "") -> Hello:
    """The hello as its node would say it in answer to that challenge."""
    proof = sign(private_key(number_of(hello.node_id)), hello_bytes(nonce, audience, hello.node_id))
    return msgspec.structs.replace(hello, signature=proof)
