"""Certificates that sign themselves, and how such a one is trusted: by its fingerprint and by nothing else.

A pinned server is verified like any other, except that the only authority is the very certificate that the link
names. Its name is not its address (a pool may move), so every certificate of ours also carries CERTIFICATE_NAME, and
that is what clients ask for.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.env import Certificate, NetworkError, WrongCertificate

CERTIFICATE_NAME = "pool.decentllm.invalid"
"""RFC 2606 reserves .invalid: no authority ever certifies this name, and no name server knows it."""
DEFAULT_DAYS = 3650
"""Longer than a pool lives: a certificate that is trusted by its fingerprint cannot be renewed without new links."""
CLOCK_SKEW = datetime.timedelta(days=1)
FETCH_TIMEOUT_S = 10.0
MAX_CONTEXTS = 256
"""Kept at most: neighbours come and go, each with a certificate of its own."""

_contexts: dict[str, ssl.SSLContext] = {}


def make_certificate(names: Sequence[str], days: int = DEFAULT_DAYS) -> Certificate:
    """A self-signed P-256 certificate for these host names and addresses, and for CERTIFICATE_NAME."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _unsigned(names, days, key.public_key()).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(pem, key_pem, fingerprint_of(pem))


def fingerprint_of(certificate_pem: bytes) -> str:
    """SHA-256 of the first certificate's DER, in hex. Raises ValueError for what is no certificate."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


async def pinned_context(host: str, port: int, pin: str) -> ssl.SSLContext:
    """A context that trusts the certificate of that SHA-256 and no other, for server_hostname=CERTIFICATE_NAME.

    The first time, the certificate is fetched from the server, as one that is public; it is trusted because of its
    hash alone. Raises WrongCertificate, or NetworkError where nobody answers."""
    if pin not in _contexts:
        pem = await _fetched(host, port)
        shown = fingerprint_of(pem.encode())
        if shown != pin:
            raise WrongCertificate(
                f"the server at {host} port {port} shows another certificate ({shown[:16]}...) than the one that is"
                f" expected there ({pin[:16]}...)"
            )
        if len(_contexts) >= MAX_CONTEXTS:
            del _contexts[next(iter(_contexts))]
        _contexts[pin] = _trusting(pem)
    return _contexts[pin]


async def speaks_tls(host: str, port: int) -> bool:
    """Whether the server there does, whoever it is."""
    try:
        await _fetched(host, port)
    except NetworkError:
        return False
    return True


def public_context() -> ssl.SSLContext:
    """A context that trusts the system's authorities."""
    return ssl.create_default_context()


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """What a server presents. Blocking.

    `load_cert_chain` only reads files: the key is in one for that moment, which only this user can read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory(prefix="decentllm-") as folder:  # made with mode 0700
        path = Path(folder) / "chain-and-key.pem"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate.certificate_pem + b"\n" + certificate.key_pem)
        context.load_cert_chain(path)
    return context


def _unsigned(names: Sequence[str], days: int, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        x509.CertificateBuilder(name, name, public_key, x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Each once, addresses as addresses (RFC 5280, section 4.2.1.6)."""
    return [_general_name(name) for name in dict.fromkeys((*names, CERTIFICATE_NAME))]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode())


async def _fetched(host: str, port: int) -> str:
    """The certificate that a server presents to whoever asks, as PEM."""
    try:
        return await asyncio.to_thread(ssl.get_server_certificate, (host, port), timeout=FETCH_TIMEOUT_S)
    except ssl.SSLError as error:
        raise NetworkError(f"the server at {host} port {port} does not speak TLS: {error.reason or error}") from None
    except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded, a port like 99999
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NetworkError(f"cannot connect to {host} port {port}: {reason}") from None


def _trusting(certificate_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=certificate_pem)
    return context
