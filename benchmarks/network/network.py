"""An emulated network that exists as long as a `with` block."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import shutil
import subprocess
import sys
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.network import namespaces
from benchmarks.network.switch_core import Traffic
from benchmarks.network.switch_messages import Order, Report, Reported, SetLine, SetLink, encode_line
from benchmarks.network.topology import Line, Link, Topology
from demo.local_pool import ROOT

ADDRESSES = ipaddress.ip_network("198.18.0.0/16")
"""For benchmarks of networks, never routed (RFC 2544, appendix C.2.2)."""
END_TIMEOUT_S = 5.0
_serials = itertools.count()


class NetworkError(Exception):
    """The network cannot be made, or its switch has ended."""


def why_not() -> str:
    """Why this machine cannot emulate a network, in one sentence; empty if it can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "An emulated network needs Linux and the program ip (iproute2)."
    if os.geteuid() != 0:
        return "An emulated network needs root, to make network namespaces."
    if not namespaces.TUN_DEVICE.exists():
        return "An emulated network needs /dev/net/tun."
    return ""


class Network:
    """Machines that reach each other through a switch; change lines and links whenever you like.

    What runs on the machines when the block ends is killed."""

    def __init__(self, topology: Topology, seed: int = 0) -> None:
        self.topology = topology
        self._seed = seed
        self._serial = next(_serials)
        self._number_of = {machine: number for number, machine in enumerate(topology.machines)}
        self._cleanup = contextlib.ExitStack()
        self._switch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Raises NetworkError in one sentence where this machine cannot do it."""
        if reason := why_not():
            raise NetworkError(reason)
        for name in namespaces.leftovers():
            namespaces.remove(name)
        with self._cleanup:
            self._start_switch()
            self._apply_topology()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    # ------------------------------------------------------------ machines

    def address(self, machine: str) -> str:
        return str(ADDRESSES[self._number_of[machine] + 1])

    def namespace(self, machine: str) -> str:
        return namespaces.name_of(self._serial, machine)

    def words(self, machine: str, *words: str, niceness: int = 0) -> list[str]:
        """What to give to python, in the repository's folder, so that `python WORDS...` runs on the machine."""
        return ["-m", "benchmarks.network.inside", self.namespace(machine), str(niceness), *words]

    def entered(self, machine: str) -> contextlib.AbstractContextManager[None]:
        """Sockets that this thread makes in the block are the machine's."""
        return namespaces.entered(self.namespace(machine))

    # ------------------------------------------------------------ changes

    def set_line(self, machine: str, line: Line) -> None:
        """From now on. Raises NetworkError."""
        self._tell(SetLine(self._number_of[machine], line))

    def set_link(self, source: str, target: str, link: Link, *, both: bool = True) -> None:
        """From now on, in both directions or in this one only. Raises NetworkError."""
        for first, second in [(source, target), (target, source)][: 1 + both]:
            self._tell(SetLink(self._number_of[first], self._number_of[second], link))

    # ------------------------------------------------------------ what was seen

    def traffic(self) -> dict[str, Traffic]:
        """Since the start, by machine. All changes made before are in force then. Raises NetworkError."""
        return dict(zip(self.topology.machines, self._report().traffic, strict=True))

    def switch_cpu_s(self) -> float:
        """Processor time that the switch has used. Raises NetworkError."""
        return self._report().cpu_s

    def _report(self) -> Reported:
        self._tell(Report())
        assert self._switch is not None and self._switch.stdout is not None
        line = self._switch.stdout.readline()
        if not line:
            raise NetworkError("The network's switch has ended; its last words are above.")
        return msgspec.json.decode(line, type=Reported)

    def _tell(self, order: Order) -> None:
        if self._switch is None or self._switch.stdin is None:
            raise NetworkError("The network is not there: use it in a `with` block.")
        try:
            self._switch.stdin.write(encode_line(order))
        except OSError:
            raise NetworkError("The network's switch has ended; its last words are above.") from None

    # ------------------------------------------------------------ making it

    def _start_switch(self) -> None:
        """The switch alone keeps the TUN devices: with it they go, whatever happens to us."""
        with contextlib.ExitStack() as ours:
            tuns = []
            for machine in self.topology.machines:
                tuns.append(self._make_machine(machine))
                ours.callback(os.close, tuns[-1])
            pairs = zip(tuns, self.topology.machines, strict=True)
            argv = [sys.executable, "-m", "benchmarks.network.switch", "--seed", str(self._seed)]
            argv += [f"--machine={tun}={self.address(machine)}" for tun, machine in pairs]
            pipe = subprocess.PIPE
            self._switch = subprocess.Popen(
                argv, stdin=pipe, stdout=pipe, bufsize=0, pass_fds=tuns, cwd=ROOT, start_new_session=True
            )
        self._cleanup.callback(self._stop_switch)

    def _make_machine(self, machine: str) -> int:
        name = self.namespace(machine)
        self._cleanup.callback(namespaces.remove, name)
        return namespaces.create(name, self.address(machine), ADDRESSES.prefixlen)

    def _apply_topology(self) -> None:
        for machine in self.topology.machines:
            self.set_line(machine, self.topology.line(machine))
        for source, target in self.topology.pairs():
            self.set_link(source, target, self.topology.link(source, target), both=False)
        self._report()

    def _stop_switch(self) -> None:
        """It ends when its standard input does."""
        switch, self._switch = self._switch, None
        assert switch is not None and switch.stdin is not None and switch.stdout is not None
        switch.stdin.close()
        try:
            switch.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            switch.kill()
            switch.wait()
        switch.stdout.close()
