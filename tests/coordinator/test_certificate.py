"""The certificate: a given one is checked before anything listens, the pool's own is made once and kept."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from coordinator.certificate import given_certificate, own_certificate
from coordinator.config import ConfigError
from protocol.join_link import fingerprint_text
from shell.tls import fingerprint_of, make_certificate

NOW_S = time.time()
DAY_S = 86_400.0


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 30 days and its key."""
    made = make_certificate(["pool.example.org"], days=30)
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.certificate_pem)
    key.write_bytes(made.key_pem)
    return certificate, key


# ---------------------------------------------------------------- given


def test_a_given_certificate_is_shown_as_it_is_and_pins_nothing(files: tuple[Path, Path]) -> None:
    checked = given_certificate(*files, NOW_S)
    assert (checked.certificate, checked.key, checked.pin) == (*files, "")


def test_of_a_chain_the_first_certificate_is_the_servers(files: tuple[Path, Path]) -> None:
    certificate, key = files
    certificate.write_bytes(certificate.read_bytes() + make_certificate(["ca.example.org"]).certificate_pem)
    given_certificate(certificate, key, NOW_S)
    certificate.write_bytes(make_certificate(["ca.example.org"]).certificate_pem + certificate.read_bytes())
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        given_certificate(certificate, key, NOW_S)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_file_that_is_not_there_is_named(files: tuple[Path, Path], missing: int) -> None:
    files[missing].unlink()
    with pytest.raises(ConfigError, match=r"Cannot read the .*No such file") as caught:
        given_certificate(*files, NOW_S)
    assert str(files[missing]) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize(
    ("which", "words"), [(0, "is no certificate in PEM form"), (1, "is no private key in PEM form")]
)
def test_a_file_of_another_kind_is_named(files: tuple[Path, Path], which: int, words: str, content: bytes) -> None:
    files[which].write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        given_certificate(*files, NOW_S)
    assert str(files[which]) in str(caught.value)


def test_files_that_were_swapped_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="is no certificate in PEM form"):
        given_certificate(files[1], files[0], NOW_S)


def test_a_key_of_another_certificate_is_refused(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(make_certificate([]).key_pem)
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        given_certificate(*files, NOW_S)


def test_a_key_with_a_password_is_refused(files: tuple[Path, Path]) -> None:
    key = load_pem_private_key(files[1].read_bytes(), None)
    protected = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    files[1].write_bytes(protected)
    with pytest.raises(ConfigError, match="is protected by a password"):
        given_certificate(*files, NOW_S)


def test_a_certificate_that_is_over_or_has_not_begun_is_refused_with_the_date(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"expired on \d{4}-\d\d-\d\d"):
        given_certificate(*files, NOW_S + 31 * DAY_S)
    with pytest.raises(ConfigError, match=r"is valid only from \d{4}-\d\d-\d\d"):
        given_certificate(*files, NOW_S - 31 * DAY_S)


# ---------------------------------------------------------------- the pool's own


def test_the_pools_own_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = own_certificate(tmp_path, ["ada", "192.168.1.7"], NOW_S)
    assert first == own_certificate(tmp_path, ["another"], NOW_S)
    assert first.pin == fingerprint_of(first.certificate.read_bytes())
    assert stat.S_IMODE(first.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.key.parent.stat().st_mode) == 0o700
    given_certificate(first.certificate, first.key, NOW_S)


def test_it_is_made_for_the_names_of_the_pool(tmp_path: Path) -> None:
    made = own_certificate(tmp_path, ["ada", "192.168.1.7"], NOW_S)
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "ada" in names.get_values_for_type(x509.DNSName)
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.7"]


@pytest.mark.parametrize("lost", ["certificate", "key"])
def test_it_is_made_anew_where_a_file_is_missing(tmp_path: Path, lost: str) -> None:
    first = own_certificate(tmp_path, [], NOW_S)
    getattr(first, lost).unlink()
    second = own_certificate(tmp_path, [], NOW_S)
    assert second.pin != first.pin
    given_certificate(second.certificate, second.key, NOW_S)


def test_it_is_made_anew_when_it_has_expired(tmp_path: Path) -> None:
    first = own_certificate(tmp_path, [], NOW_S)
    assert own_certificate(tmp_path, [], NOW_S + 9 * 365 * DAY_S).pin == first.pin
    assert own_certificate(tmp_path, [], NOW_S + 11 * 365 * DAY_S).pin != first.pin


def test_a_damaged_one_is_not_replaced_behind_the_operators_back(tmp_path: Path) -> None:
    made = own_certificate(tmp_path, [], NOW_S)
    made.key.write_bytes(make_certificate([]).key_pem)
    with pytest.raises(ConfigError, match="do not belong together"):
        own_certificate(tmp_path, [], NOW_S)
    made.certificate.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="is no certificate in PEM form"):
        own_certificate(tmp_path, [], NOW_S)


def test_a_fingerprint_is_shown_as_browsers_show_it() -> None:
    assert fingerprint_text("0a1bff") == "0A:1B:FF"
    assert fingerprint_text("") == ""
