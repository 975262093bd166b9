"""Asks the running pool as its operator, for commands on the pool's own machine.

A command works on the pool's folder: it begins an operator's session in the pool's own database, which lasts as long as
the question, and asks over HTTP past proxies and name servers.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from coordinator.accounts import Accounts
from coordinator.api.credentials import cookie_name
from coordinator.config import Site
from coordinator.errors import PoolError
from coordinator.folder_lock import is_locked
from protocol.env import NetworkError
from shell.tls import CERTIFICATE_NAME, pinned_context, public_context

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 2**28

T = TypeVar("T")


class NoAnswer(PoolError):  # noqa: N818 - reads as what happened
    """The pool does not run, or cannot be asked."""

    def __init__(self, message: str) -> None:
        super().__init__("no_answer", message)


def ask(data_dir: Path, accounts: Accounts, site: Site, path: str, answer: type[T]) -> T:
    """What the pool that runs in this folder answers at that path. Raises NoAnswer, StoreError."""
    if not is_locked(data_dir):
        raise NoAnswer(f"The pool in {data_dir} is not running: start it with `decentllm-coordinator serve`.")
    with closing(_connection(site)) as connection, accounts.command_session() as cookie:
        body = _body(connection, site, path, cookie)
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.DecodeError:
        raise NoAnswer(f"What the pool at {_address(site)} answers cannot be read; is it of another version?") from None


def _body(connection: http.client.HTTPConnection, site: Site, path: str, cookie: str) -> bytes:
    try:
        connection.request("GET", path, headers={"Cookie": f"{cookie_name(site)}={cookie}"})
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER_BYTES)
    except ssl.SSLError as error:
        raise NoAnswer(f"The pool shows a certificate that is not trusted here: {error.reason or error}.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        sentence = f"The pool does not answer at {_address(site)} ({reason}); it may be starting or stopping."
        raise NoAnswer(sentence) from None
    if answer.status != http.client.OK:
        raise NoAnswer(f"The pool at {_address(site)} did not say what was asked (HTTP status {answer.status}).")
    return body


def _address(site: Site) -> str:
    return site.local_url or site.base_url


def _connection(site: Site) -> http.client.HTTPConnection:
    """Not connected yet. With TLS by the pool's own certificate where it has one, else by its public name."""
    parts = urlsplit(_address(site))
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    port = parts.port or http.client.HTTPS_PORT
    if not site.pin:
        return _NamedConnection(host, port, public_context(), urlsplit(site.base_url).hostname or host)
    try:
        context = asyncio.run(pinned_context(host, port, site.pin))
    except NetworkError as error:
        raise NoAnswer(f"The pool cannot be asked: {error}.") from None
    return _NamedConnection(host, port, context, CERTIFICATE_NAME)


class _NamedConnection(http.client.HTTPSConnection):
    """To an address, where the certificate must be for a name."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self._tls, self._name = context, name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        plain = self.sock
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
        except BaseException:
            plain.close()
            raise
