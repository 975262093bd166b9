"""Network namespaces with a TUN device each. Their names carry the id of the process that made them, so that those of
a process that was killed can be told and removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from demo.local_pool import is_running

PREFIX = "decentllm"
FOLDER = Path("/run/netns")
"""Where `ip netns` keeps a file per name: ip-netns(8)."""
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
TUN_DEVICE = Path("/dev/net/tun")
INTERFACE = "tun0"
MTU_BYTES = 1500
_NAME = re.compile(rf"{PREFIX}-(\d+)-\d+-.+")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
"""linux/sched.h, linux/if_tun.h."""


class CommandFailed(Exception):  # noqa: N818 - reads as what happened
    """`ip` did not do what it was asked; the message is its own."""


def ip(*words: str) -> str:
    """What `ip` prints. Raises CommandFailed."""
    ended = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise CommandFailed(f"ip {' '.join(words)}: {ended.stderr.strip()}")
    return ended.stdout


def name_of(serial: int, machine: str) -> str:
    """A name that no other process takes; `serial` tells the networks of this one apart."""
    return f"{PREFIX}-{os.getpid()}-{serial}-{machine}"


def leftovers() -> list[str]:
    """Namespaces whose makers have ended without removing them."""
    names = sorted(path.name for path in FOLDER.glob(f"{PREFIX}-*"))
    return [name for name in names if (made := _NAME.fullmatch(name)) and not is_running(int(made[1]))]


def remove(name: str) -> None:
    """End what still runs in the namespace, which is ours alone, and remove its name. Harmless if it is gone."""
    if not (FOLDER / name).exists():
        return
    for pid in map(int, ip("netns", "pids", name).split()):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
    ip("netns", "del", name)


def create(name: str, address: str, prefix_length: int) -> int:
    """Make the namespace with a TUN device that has this address; returns the device's other end, which does not block.

    The device lives as long as that descriptor. There is no default route: what is not of this network is unreachable
    at once, name servers included, rather than after a timeout."""
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    with entered(name):
        tun = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        try:
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError:
            os.close(tun)
            raise
    ip("-n", name, "addr", "add", f"{address}/{prefix_length}", "dev", INTERFACE)
    ip("-n", name, "link", "set", INTERFACE, "mtu", str(MTU_BYTES), "up")
    return tun


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """This thread is in the namespace; sockets made meanwhile stay there for good. Raises OSError."""
    with OWN_NAMESPACE.open("rb") as before, (FOLDER / name).open("rb") as wanted:
        _set_namespace(wanted.fileno())
        try:
            yield
        finally:
            _set_namespace(before.fileno())


def _set_namespace(descriptor: int) -> None:
    """setns(2); Python has it since 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
