"""Real namespaces and a real switch; times are compared with generous room, as the machine may be busy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.network import Line, Link, Network, NetworkError, Topology, namespaces, why_not
from demo.local_pool import ROOT, is_running

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PORT = 5000
LIMIT_S = 20.0
DELAY_S = 0.05
ECHO = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    connection, address = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data[-1:] if data.endswith(b"!") else b"")
    connection.close()
"""
"""Answers with one byte to whatever ends with an exclamation mark."""


def exists(namespace: str) -> bool:
    return (namespaces.FOLDER / namespace).exists()


def echoing(network: Network, machine: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, *network.words(machine, "-c", ECHO)]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    return program


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Two machines; b answers."""
    with Network(Topology(("a", "b"), usual_link=Link(delay_s=DELAY_S))) as network:
        program = echoing(network, "b")
        yield network
        program.kill()
        program.communicate()


def connected(network: Network) -> socket.socket:
    with network.entered("a"):
        connection = socket.create_connection((network.address("b"), PORT), LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def round_trip_s(connection: socket.socket, num_bytes: int = 1) -> float:
    began_s = time.perf_counter()
    connection.sendall(bytes(num_bytes - 1) + b"!")
    assert connection.recv(1) == b"!"
    return time.perf_counter() - began_s


def test_programs_reach_each_other_with_the_delay_of_both_directions(network: Network) -> None:
    with connected(network) as connection:
        fastest_s = min(round_trip_s(connection) for _ in range(5))
    assert 2 * DELAY_S <= fastest_s < 2 * DELAY_S + 0.03


def test_a_link_can_change_while_a_connection_is_open(network: Network) -> None:
    with connected(network) as connection:
        network.set_link("a", "b", Link(delay_s=0.15), both=False)
        network.traffic()
        try:
            assert round_trip_s(connection) >= 0.15 + DELAY_S
        finally:
            network.set_link("a", "b", Link(delay_s=DELAY_S))


def test_an_uplink_limits_what_gets_through(network: Network) -> None:
    network.set_line("a", Line(up_bits_per_s=4e6))
    try:
        with connected(network) as connection:
            assert round_trip_s(connection, 400_000) >= 400_000 * 8 / 4e6
    finally:
        network.set_line("a", Line())


def test_a_cut_machine_is_silent_and_goes_on_afterwards(network: Network) -> None:
    with connected(network) as connection:
        round_trip_s(connection)
        network.set_line("b", Line(is_cut=True))
        network.traffic()
        connection.sendall(b"!")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        network.set_line("b", Line())
        connection.settimeout(LIMIT_S)
        assert connection.recv(1) == b"!", "TCP sends again what was lost"


def test_traffic_is_counted_by_machine(network: Network) -> None:
    before = network.traffic()
    with connected(network) as connection:
        round_trip_s(connection, 10_000)
    after = network.traffic()
    assert after["a"].sent_bytes - before["a"].sent_bytes >= 10_000
    assert after["b"].num_received > before["b"].num_received


def test_the_block_is_left_where_it_was_entered(network: Network) -> None:
    with network.entered("a"):
        inside = namespaces.OWN_NAMESPACE.readlink()
    assert namespaces.OWN_NAMESPACE.readlink() != inside


def test_what_is_not_of_the_network_is_unreachable_at_once(network: Network) -> None:
    with network.entered("a"), pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), LIMIT_S)


def test_nothing_is_left_behind_and_what_ran_on_the_machines_is_ended() -> None:
    with Network(Topology(("one", "two"))) as network:
        program = echoing(network, "one")
        names = [network.namespace(machine) for machine in ("one", "two")]
        assert all(map(exists, names))
    assert program.wait(LIMIT_S) == -signal.SIGKILL
    program.communicate()
    assert not any(map(exists, names))


def test_an_error_in_the_block_leaves_nothing_behind_either() -> None:
    with pytest.raises(RuntimeError), Network(Topology(("one",))) as network:
        raise RuntimeError
    assert not exists(network.namespace("one"))


KILLED = """
import os, signal
from benchmarks.network import Network, Topology
with Network(Topology(("one",))) as network:
    print(network.namespace("one"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_network() -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S)
    name = ended.stdout.strip()
    assert name in namespaces.leftovers()
    with Network(Topology(("other",))):
        assert not exists(name)


def test_namespaces_of_a_living_process_are_no_leftovers(network: Network) -> None:
    assert is_running(os.getpid())
    assert network.namespace("a") not in namespaces.leftovers()


def test_a_switch_that_has_died_is_noticed_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with Network(Topology(("one",))) as network:
        assert network._switch is not None
        network._switch.kill()
        network._switch.wait()
        with pytest.raises(NetworkError, match="switch has ended"):
            network.traffic()
