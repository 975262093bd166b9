"""What the network's owner tells its switch, one JSON line each, and what comes back."""

from __future__ import annotations

import msgspec

from benchmarks.network.switch_core import Traffic
from benchmarks.network.topology import Line, Link


class SetLine(msgspec.Struct, frozen=True, tag=True):
    machine: int
    line: Line


class SetLink(msgspec.Struct, frozen=True, tag=True):
    source: int
    target: int
    link: Link


class Report(msgspec.Struct, frozen=True, tag=True):
    """Wanted: a Reported line. It also shows that all orders before it are in force."""


Order = SetLine | SetLink | Report


class Reported(msgspec.Struct, frozen=True):
    traffic: tuple[Traffic, ...]
    """Since the start, per machine."""
    cpu_s: float
    """What the switch has used of a processor."""


_orders: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


def encode_line(message: Order | Reported) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises msgspec.DecodeError for what is none."""
    return _orders.decode(line)
