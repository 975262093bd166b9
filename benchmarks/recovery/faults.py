"""What is done to a pool in the middle of an answer, and how it is undone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import structs

from benchmarks.network import Line
from benchmarks.recovery.pools import Rig


class Fault(StrEnum):
    KILL_WORKER = "worker killed"
    KILL_NODE = "node killed"
    """Agent and worker, as when a machine's power goes, but for its kernel, which closes the connections."""
    STOP_WORKER = "worker stopped"
    STOP_NODE = "node stopped"
    CABLE = "cable of one node cut"
    PAIR = "cut between two stages"


SIGNALS = {
    Fault.KILL_WORKER: signal.SIGKILL,
    Fault.KILL_NODE: signal.SIGKILL,
    Fault.STOP_WORKER: signal.SIGSTOP,
    Fault.STOP_NODE: signal.SIGSTOP,
}
OF_WORKER = frozenset({Fault.KILL_WORKER, Fault.STOP_WORKER})


def replaceable(layers: Mapping[str, str], chain: Sequence[str], gone: frozenset[str] = frozenset()) -> list[str]:
    """Nodes of the chain whose layers another node holds that is not in it. `layers` are those of nodes that serve."""
    spare = {held for name, held in layers.items() if name not in chain and name not in gone}
    return [name for name in chain if layers.get(name) in spare]


def break_it(rig: Rig, fault: Fault, victim: str, chain: Sequence[str]) -> contextlib.ExitStack:
    """Do it to the victim, a node of the chain; what is returned undoes it when it is closed."""
    undo = contextlib.ExitStack()
    if fault in SIGNALS:
        pids = rig.worker_of(victim) if fault in OF_WORKER else rig.processes_of(victim)
        undo.callback(_revive, rig, fault, victim, pids)
        send(pids, SIGNALS[fault])
        return undo
    network = rig.network
    assert network is not None, "cables are cut in an emulated network"
    if fault is Fault.CABLE:
        undo.callback(network.set_line, victim, network.topology.line(victim))
        network.set_line(victim, Line(is_cut=True))
        return undo
    neighbour = chain[(chain.index(victim) + 1) % len(chain)]
    link = network.topology.link(victim, neighbour)
    undo.callback(network.set_link, victim, neighbour, link)
    network.set_link(victim, neighbour, structs.replace(link, is_cut=True))
    return undo


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """To those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _revive(rig: Rig, fault: Fault, victim: str, pids: Sequence[int]) -> None:
    if SIGNALS[fault] is signal.SIGSTOP:
        send(pids, signal.SIGCONT)
    if fault is Fault.KILL_NODE:
        rig.node(victim).process.wait()
