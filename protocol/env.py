"""Interfaces of everything impure that the core uses. `shell/` implements them on asyncio; tests on virtual time.

Rules that make a run repeatable: no module of the core reads a clock, draws a random number, opens a socket or a
file or starts a process but through an Env; blocking work goes through `run_blocking`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back. For deadlines and durations."""

    def wall(self) -> float:
        """Seconds since 1970. For people only."""

    async def sleep(self, delay_s: float) -> None: ...


class Random(Protocol):
    def token_hex(self, num_bytes: int) -> str:
        """Unpredictable hex digits: ids, tickets."""

    def below(self, limit: int) -> int:
        """A whole number in [0, limit): seeds."""

    def uniform(self, low: float, high: float) -> float:
        """For jitter."""


class ConnectionClosed(Exception):  # noqa: N818 - the field's name for it (websockets)
    """The other side is gone. `code` is the websocket close code, 1006 when there was none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"connection closed ({self.code}) {self.reason}".rstrip()


class NetworkError(Exception):
    """A connection could not be made, or a download failed; the sentence says what and where."""


class Connection(Protocol):
    """One websocket: text for control, bytes for data. Both methods raise ConnectionClosed."""

    async def send(self, data: str | bytes) -> None: ...

    async def recv(self) -> str | bytes: ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...


class OutgoingConnection(Connection, Protocol):
    """A websocket that this side has opened."""

    async def ping(self) -> float:
        """Seconds until the other side has answered a ping (RFC 6455, section 5.5.2), which it does once it has taken
        everything sent before. Raises ConnectionClosed."""


class Listener(Protocol):
    @property
    def port(self) -> int: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that signs itself, and its key. `fingerprint` is the SHA-256 of the certificate's DER, in hex."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is trusted and what opens it. Empty `pin`: the system's authorities decide (https, wss).

    With a pin the server must show the very certificate of that SHA-256, and no authority counts. `token` goes into
    the Authorization header (RFC 6750)."""

    pin: str = ""
    token: str = field(default="", repr=False)


class WrongCertificate(NetworkError):  # noqa: N818 - reads as what happened
    """The server is not the one that the link names: never connect, and tell the person."""


class NotAWebsocket(NetworkError):  # noqa: N818 - reads as what happened
    """Something answers at that address, and it is no websocket."""


class Network(Protocol):
    async def connect(
        self, url: str, max_size_bytes: int, access: Access = Access(), *, is_mixed: bool = False
    ) -> OutgoingConnection:
        """Open a websocket; raises NetworkError, WrongCertificate and NotAWebsocket among them. `is_mixed`: urgent
        messages travel beside bulky ones, so little of these may wait where nothing overtakes them any more."""

    async def listen(
        self,
        host: str,
        port: int,
        handler: Callable[[Connection], Awaitable[None]],
        max_size_bytes: int,
        certificate: Certificate | None = None,
    ) -> Listener:
        """Serve websockets (with TLS if there is a certificate); port 0 lets the system choose. Raises NetworkError
        when the port is taken."""

    def get(
        self, url: str, start: int | None = None, stop: int | None = None, access: Access = Access()
    ) -> AsyncIterator[bytes]:
        """The body of an HTTP GET, of bytes [start, stop) if given, in pieces. Raises NetworkError."""

    async def local_host_towards(self, url: str) -> str:
        """The address of this machine that connections to that URL leave from. Raises NetworkError."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file takes on the disk (a sparse one less than its size), and when it was last written to."""

    used_bytes: int
    written_s: float


class Disk(Protocol):
    def read(self, path: Path) -> bytes | None:
        """The whole file, None if there is none."""

    def read_at(self, path: Path, offset: int, num_bytes: int) -> bytes: ...

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Replace the file: readers see the old or the new content, never a half."""

    def write_private(self, path: Path, data: bytes) -> None:
        """As write_atomic, and at no moment can another user read it."""

    def list_files(self, folder: Path) -> dict[str, FileFacts]:
        """Every file below the folder, by its path relative to it (with slashes); {} if there is no such folder."""

    def reserve(self, path: Path, size_bytes: int) -> None:
        """Make a (sparse) file of that size if there is none of that size."""

    def write_at(self, path: Path, offset: int, data: bytes) -> None: ...

    def sync(self, path: Path) -> None:
        """On return what was written to the file survives a power cut."""

    def free_bytes(self, path: Path) -> int: ...

    def remove(self, path: Path) -> None: ...

    def remove_folder(self, folder: Path) -> None:
        """With everything in it; nothing happens if there is none."""


class ByteChannel(Protocol):
    """A stream of bytes to a child process. Both raise ConnectionClosed."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


class Process(Protocol):
    @property
    def pid(self) -> int: ...

    @property
    def channel(self) -> ByteChannel: ...

    async def wait(self) -> int:
        """The exit status once it has ended; negative for a signal."""

    def kill(self) -> None:
        """End it at once; harmless when it has ended."""

    def cpu_s(self) -> float | None:
        """The processor time that it and its children have used; None where the system does not say."""


class Processes(Protocol):
    async def spawn(self, argv: Sequence[str], extra_environment: Mapping[str, str]) -> Process:
        """Start a child that shares a socket with us. "{channel}" in argv becomes what it opens that socket by."""


class Env(Protocol):
    """Everything impure, in one object."""

    @property
    def clock(self) -> Clock: ...

    @property
    def random(self) -> Random: ...

    @property
    def network(self) -> Network: ...

    @property
    def disk(self) -> Disk: ...

    @property
    def processes(self) -> Processes: ...

    async def run_blocking(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking call (disk, hashing, tokenising) off the event loop."""
