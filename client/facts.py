"""What this machine would bring and what it would fetch, told before the volunteer decides. Free of Qt and asyncio.

`decentllm node facts` prints one Facts as a line of JSON; the window reads it.
"""

from __future__ import annotations

import msgspec

from protocol.values import Bytes


class DeviceFacts(msgspec.Struct, frozen=True):
    """A device that would serve."""

    name: str
    memory_bytes: Bytes


class Facts(msgspec.Struct, frozen=True):
    """`runtime_bytes` is what would be downloaded once, before the first contribution, unless the runtime is ready.

    `problem` is one sentence for the volunteer, such as why the GPU cannot be used; empty: none."""

    devices: tuple[DeviceFacts, ...] = ()
    runtime_ready: bool = False
    runtime_bytes: Bytes = 0
    runtime_folder: str = ""
    weights_folder: str = ""
    free_disk_bytes: Bytes = 0
    problem: str = ""


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Facts] = msgspec.json.Decoder(Facts)


def encode_facts(facts: Facts) -> bytes:
    """As one line of JSON."""
    return _encoder.encode(facts) + b"\n"


def decode_facts(line: bytes) -> Facts:
    """Raises msgspec.DecodeError (also for a line of another shape)."""
    return _decoder.decode(line)
