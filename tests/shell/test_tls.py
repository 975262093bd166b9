"""Certificates that sign themselves: what is in them, and that only the pinned one is trusted, over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from protocol.env import Certificate, NetworkError, WrongCertificate
from shell import tls
from shell.tls import CERTIFICATE_NAME, fingerprint_of, make_certificate, pinned_context, public_context, server_context

HOST = "127.0.0.1"
EXPIRED_DAYS = 0


@asynccontextmanager
async def tls_server(certificate: Certificate) -> AsyncIterator[int]:
    """Says "hello" to whoever has finished the handshake."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0, ssl=server_context(certificate)) as server:
        yield server.sockets[0].getsockname()[1]


async def greeting(port: int, context: ssl.SSLContext, name: str = CERTIFICATE_NAME) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=name)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def _no_context_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_contexts", {})


# ---------------------------------------------------------------- what is in one


def test_a_certificate_is_for_its_names_and_addresses_and_our_own_name() -> None:
    made = make_certificate(["pool.example", "192.168.1.7", "fd00::7", "pool.example", "bücher.example"])
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pool.example", "xn--bcher-kva.example", CERTIFICATE_NAME]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.7", "fd00::7"]


def test_a_certificate_lasts_as_long_as_asked_for_and_is_good_on_a_clock_that_is_late() -> None:
    certificate = x509.load_pem_x509_certificate(make_certificate([], days=7).certificate_pem)
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now - datetime.timedelta(hours=23)
    assert abs(certificate.not_valid_after_utc - now - datetime.timedelta(days=7)) < datetime.timedelta(hours=1)


def test_the_fingerprint_is_the_hash_of_the_der() -> None:
    made = make_certificate(["pool.example"])
    der = ssl.PEM_cert_to_DER_cert(made.certificate_pem.decode())
    assert made.fingerprint == fingerprint_of(made.certificate_pem) == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_fingerprint(text: bytes) -> None:
    with pytest.raises(ValueError):
        fingerprint_of(text)


def test_every_certificate_has_its_own_key_which_is_in_no_repr() -> None:
    one, other = make_certificate(["pool.example"]), make_certificate(["pool.example"])
    assert one.key_pem != other.key_pem
    assert "PRIVATE KEY" not in repr(one)


def test_the_key_is_in_a_file_for_a_moment_only_and_only_for_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def look(self: ssl.SSLContext, path: Path) -> None:
        modes.extend(stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent))
        load(self, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    server_context(make_certificate(["pool.example"]))
    assert modes == [0o600, 0o700]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- who is trusted


async def test_the_pinned_certificate_is_trusted_at_any_address() -> None:
    made = make_certificate(["another.example"])
    async with tls_server(made) as port:
        assert await greeting(port, await pinned_context(HOST, port, made.fingerprint)) == b"hello"


async def test_a_pinned_context_verifies_as_any_other() -> None:
    made = make_certificate(["pool.example"])
    async with tls_server(made) as port:
        context = await pinned_context(HOST, port, made.fingerprint)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await greeting(port, context, "pool.elsewhere")


async def test_another_certificate_is_refused_before_anything_is_said() -> None:
    made = make_certificate(["pool.example"])
    async with tls_server(made) as port:
        with pytest.raises(WrongCertificate, match=f"port {port} shows another certificate") as caught:
            await pinned_context(HOST, port, "0" * 64)
    assert made.fingerprint[:16] in str(caught.value)


async def test_a_context_is_made_once_per_pin_and_trusts_no_other_certificate() -> None:
    made, other = make_certificate(["pool.example"]), make_certificate(["pool.example"])
    async with tls_server(made) as port, tls_server(other) as other_port:
        context = await pinned_context(HOST, port, made.fingerprint)
        assert await pinned_context(HOST, other_port, made.fingerprint) is context
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting(other_port, context)


async def test_contexts_of_servers_long_gone_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_CONTEXTS", 2)
    certificates = [make_certificate(["pool.example"]) for _ in range(3)]
    for made in certificates:
        async with tls_server(made) as port:
            await pinned_context(HOST, port, made.fingerprint)
    assert list(tls._contexts) == [made.fingerprint for made in certificates[1:]]


async def test_a_certificate_out_of_date_is_refused_though_it_is_the_pinned_one() -> None:
    made = make_certificate(["pool.example"], EXPIRED_DAYS)
    async with tls_server(made) as port:
        context = await pinned_context(HOST, port, made.fingerprint)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await greeting(port, context)


async def test_no_authority_vouches_for_a_certificate_that_signs_itself() -> None:
    made = make_certificate([HOST])
    async with tls_server(made) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            await greeting(port, public_context(), HOST)


async def test_nobody_there_is_a_network_error_with_the_address() -> None:
    async with tls_server(make_certificate([])) as port:
        pass
    with pytest.raises(NetworkError, match=f"cannot connect to {HOST} port {port}"):
        await pinned_context(HOST, port, "0" * 64)


async def test_a_server_without_tls_is_a_network_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        with pytest.raises(NetworkError, match="does not speak TLS"):
            await pinned_context(HOST, server.sockets[0].getsockname()[1], "0" * 64)


@pytest.mark.parametrize(("host", "port"), [("", 0), ("x" * 70, 443), (HOST, 99999), ("no.such.host.invalid", 443)])
async def test_an_address_that_is_none_is_a_network_error(host: str, port: int) -> None:
    with pytest.raises(NetworkError):
        await pinned_context(host, port, "0" * 64)
