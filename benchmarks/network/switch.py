"""`python -m benchmarks.network.switch`: the process in the middle of an emulated network, started by Network.

One loop over the machines' TUN devices and the orders on standard input. It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time
from collections.abc import Sequence

from benchmarks.network.switch_core import SwitchCore
from benchmarks.network.switch_messages import Order, Report, Reported, SetLine, SetLink, decode_order, encode_line

MAX_PACKET_BYTES = 65536
MAX_PACKETS_AT_ONCE = 64
"""Of one machine, before the others get their turn."""
NICENESS = -10
"""Late packets would be a delay that nobody asked for."""
ORDERS = 0
"""Standard input."""


class Switch:
    """The shell around the core: clock, descriptors, select."""

    def __init__(self, core: SwitchCore, tuns: Sequence[int]) -> None:
        self._core = core
        self._tuns = list(tuns)
        self._number_of = {tun: number for number, tun in enumerate(tuns)}
        self._partial_line = b""

    def run(self) -> None:
        """Until standard input ends. `select` rather than epoll: its time limit has microseconds, not milliseconds."""
        while True:
            readable, _, _ = select.select([*self._tuns, ORDERS], [], [], self._patience_s())
            for descriptor in readable:
                if descriptor != ORDERS:
                    self._read_packets(descriptor)
                elif not self._read_orders():
                    return
            for target, packet in self._core.take_due(time.monotonic()):
                self._deliver(target, packet)

    def _patience_s(self) -> float | None:
        due_s = self._core.next_due_s()
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def _read_packets(self, tun: int) -> None:
        for _ in range(MAX_PACKETS_AT_ONCE):
            try:
                packet = os.read(tun, MAX_PACKET_BYTES)
            except BlockingIOError:  # that was all
                return
            self._core.packet_in(self._number_of[tun], packet, time.monotonic())

    def _deliver(self, target: int, packet: bytes) -> None:
        try:
            os.write(self._tuns[target], packet)
        except OSError as error:  # its namespace is being removed, or has no room: to the sender a lost packet
            print(f"a packet for machine {target} is lost: {error}", file=sys.stderr)

    def _read_orders(self) -> bool:
        """False once the owner has gone."""
        data = os.read(ORDERS, MAX_PACKET_BYTES)
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        for line in lines:
            self._obey(decode_order(line))
        return bool(data)

    def _obey(self, order: Order) -> None:
        match order:
            case SetLine(machine, line):
                self._core.set_line(machine, line)
            case SetLink(source, target, link):
                self._core.set_link(source, target, link)
            case Report():
                report = Reported(tuple(self._core.traffic), time.process_time())
                os.write(1, encode_line(report))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--machine", action="append", required=True, metavar="TUN=ADDRESS")
    arguments = parser.parse_args(argv)
    os.nice(NICENESS)
    pairs = [machine.split("=") for machine in arguments.machine]
    core = SwitchCore([socket.inet_aton(address) for _, address in pairs], arguments.seed)
    Switch(core, [int(tun) for tun, _ in pairs]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
