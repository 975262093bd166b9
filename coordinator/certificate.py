"""The certificate that the pool shows: one that the operator gives, or the pool's own, made once and kept.

Join links carry the fingerprint of the pool's own certificate, so it is made anew only where it is missing or has
expired: a new one makes every link that was given away useless.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from coordinator.config import ConfigError
from coordinator.private_files import make_private_folder, write_private
from shell.tls import fingerprint_of, make_certificate

log = logging.getLogger(__name__)

FOLDER_NAME = "tls"
CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "key.pem"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the server shows. `pin` is the fingerprint that links carry, empty for a certificate that was given: that
    one is trusted as its authority is, and may be renewed."""

    certificate: Path
    key: Path
    pin: str = ""


def given_certificate(certificate: Path, key: Path, now_s: float) -> TlsFiles:
    """The operator's files, if a server can use them now. Raises ConfigError."""
    checked = _loaded_certificate(certificate)
    if _public_bytes_of_key(key) != _public_bytes(checked):
        raise ConfigError(f"The key in {key} does not belong to the certificate in {certificate}.")
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    if now > checked.not_valid_after_utc:
        raise ConfigError(f"The certificate in {certificate} expired on {checked.not_valid_after_utc:%Y-%m-%d}.")
    if now < checked.not_valid_before_utc:
        raise ConfigError(
            f"The certificate in {certificate} is valid only from {checked.not_valid_before_utc:%Y-%m-%d}."
        )
    return TlsFiles(certificate, key)


def own_certificate(data_dir: Path, names: Sequence[str], now_s: float) -> TlsFiles:
    """The pool's own, made for these names if there is none that is valid. Raises ConfigError for a damaged one."""
    folder = data_dir / FOLDER_NAME
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    if not certificate.exists() or not key.exists() or _has_expired(certificate, now_s):
        _make(certificate, key, names)
    return TlsFiles(certificate, key, _pin_of(certificate, key))


def _make(certificate: Path, key: Path, names: Sequence[str]) -> None:
    made = make_certificate(names)
    make_private_folder(certificate.parent)
    certificate.unlink(missing_ok=True)  # never an old certificate with a new key, should this be cut short
    write_private(key, made.key_pem)
    write_private(certificate, made.certificate_pem)
    log.info("made the pool's own certificate in %s", certificate.parent)


def _has_expired(certificate: Path, now_s: float) -> bool:
    return _loaded_certificate(certificate).not_valid_after_utc.timestamp() < now_s


def _pin_of(certificate: Path, key: Path) -> str:
    if _public_bytes_of_key(key) != _public_bytes(_loaded_certificate(certificate)):
        raise ConfigError(
            f"Key and certificate in {key.parent} do not belong together; remove that folder to have new ones."
        )
    return fingerprint_of(certificate.read_bytes())


def _loaded_certificate(path: Path) -> x509.Certificate:
    """The first of the file, which is the server's (RFC 8446, section 4.4.2)."""
    try:
        return x509.load_pem_x509_certificates(_content(path, "certificate"))[0]
    except ValueError:
        raise ConfigError(f"{path} is no certificate in PEM form.") from None


def _public_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes_of_key(path: Path) -> bytes:
    try:
        key = load_pem_private_key(_content(path, "key"), password=None)
    except TypeError:  # what cryptography raises for it
        raise ConfigError(f"The key in {path} is protected by a password; the coordinator needs one without.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no private key in PEM form.") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read the {what} {path}: {error.strerror or error}.") from None
