"""The switch's decisions, pure: a packet and the time in, packets that are due out.

A packet passes its sender's line, the link, and its receiver's line. A line is a token bucket one packet deep: it sends
one bit after the other at its rate, and what would have to wait longer than the line's queue holds is dropped.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from benchmarks.network.topology import Line, Link

IPV4 = 4
MIN_HEADER_BYTES = 20
DESTINATION = slice(16, 20)
"""RFC 791, section 3.1."""
BITS = 8


class Traffic(msgspec.Struct):
    """What one machine has sent and received, in packets and bytes, and what of its own was dropped on the way."""

    num_sent: int = 0
    sent_bytes: int = 0
    num_received: int = 0
    received_bytes: int = 0
    num_lost: int = 0
    """By chance, or because something was cut."""
    num_overflowed: int = 0
    """Because a line's queue was full."""


@dataclass(slots=True)
class _Meter:
    """One direction of a line: when it is done with what it has taken."""

    free_at_s: float = 0.0

    def sent_at_s(self, num_bytes: int, bits_per_s: float | None, queue_s: float, now_s: float) -> float | None:
        """When the packet's last bit has gone; None if the queue is full."""
        if bits_per_s is None:
            return now_s
        start_s = max(now_s, self.free_at_s)
        if start_s - now_s > queue_s:
            return None
        self.free_at_s = start_s + num_bytes * BITS / bits_per_s
        return self.free_at_s


@dataclass(slots=True)
class _Machine:
    line: Line = Line()
    up: _Meter = field(default_factory=_Meter)
    down: _Meter = field(default_factory=_Meter)
    traffic: Traffic = field(default_factory=Traffic)


class SwitchCore:
    """Machines are numbers: indices of `addresses` (IPv4, four bytes each). The same packets at the same times with
    the same seed have the same fate."""

    def __init__(self, addresses: Sequence[bytes], seed: int) -> None:
        self._by_address = {address: number for number, address in enumerate(addresses)}
        self._machines = [_Machine() for _ in addresses]
        self._links = [[Link() for _ in addresses] for _ in addresses]
        self._arrived_s = [[0.0 for _ in addresses] for _ in addresses]
        self._random = random.Random(seed)
        self._num_events = 0
        self._events: list[tuple[float, int, bool, int, int, bytes]] = []
        """When, a serial number, whether it has passed its receiver's line, sender, receiver, packet."""

    @property
    def traffic(self) -> list[Traffic]:
        return [machine.traffic for machine in self._machines]

    def set_line(self, machine: int, line: Line) -> None:
        """From now on; what is on its way keeps the time that it was given."""
        self._machines[machine].line = line

    def set_link(self, source: int, target: int, link: Link) -> None:
        self._links[source][target] = link

    def packet_in(self, source: int, packet: bytes, now_s: float) -> None:
        """`source` sends a packet. What is no IPv4 packet for a machine of this network is ignored."""
        target = self._target(packet)
        if target is None:
            return
        sender, link = self._machines[source], self._links[source][target]
        sender.traffic.num_sent += 1
        sender.traffic.sent_bytes += len(packet)
        if self._is_lost(sender, self._machines[target], link):
            sender.traffic.num_lost += 1
            return
        line = sender.line
        sent_s = sender.up.sent_at_s(len(packet), line.up_bits_per_s, line.queue_s, now_s)
        if sent_s is None:
            sender.traffic.num_overflowed += 1
            return
        arrival_s = sent_s + link.delay_s + (self._random.random() * link.jitter_s if link.jitter_s else 0.0)
        arrival_s = self._arrived_s[source][target] = max(arrival_s, self._arrived_s[source][target])
        self._at(arrival_s, False, source, target, packet)

    def take_due(self, now_s: float) -> list[tuple[int, bytes]]:
        """Packets that have arrived by now, in order, each with its receiver."""
        delivered = []
        while self._events and self._events[0][0] <= now_s:
            at_s, _, has_passed, source, target, packet = heapq.heappop(self._events)
            if has_passed or self._machines[target].line.down_bits_per_s is None:
                delivered.append((target, packet))
                self._count_received(target, packet)
            else:
                self._pass_down(at_s, source, target, packet)
        return delivered

    def next_due_s(self) -> float | None:
        """When `take_due` has something to do; None: not before another packet comes."""
        return self._events[0][0] if self._events else None

    def _target(self, packet: bytes) -> int | None:
        if len(packet) < MIN_HEADER_BYTES or packet[0] >> 4 != IPV4:
            return None
        return self._by_address.get(packet[DESTINATION])

    def _is_lost(self, sender: _Machine, receiver: _Machine, link: Link) -> bool:
        if sender.line.is_cut or receiver.line.is_cut or link.is_cut:
            return True
        return link.loss > 0.0 and self._random.random() < link.loss

    def _pass_down(self, at_s: float, source: int, target: int, packet: bytes) -> None:
        """The receiver's line takes the packet at the time it came, however late we look."""
        receiver = self._machines[target]
        line = receiver.line
        passed_s = receiver.down.sent_at_s(len(packet), line.down_bits_per_s, line.queue_s, at_s)
        if passed_s is None:
            self._machines[source].traffic.num_overflowed += 1
        else:
            self._at(passed_s, True, source, target, packet)

    def _at(self, due_s: float, has_passed: bool, source: int, target: int, packet: bytes) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (due_s, self._num_events, has_passed, source, target, packet))

    def _count_received(self, target: int, packet: bytes) -> None:
        traffic = self._machines[target].traffic
        traffic.num_received += 1
        traffic.received_bytes += len(packet)
