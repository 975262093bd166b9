"""Ed25519: what the holder of a key signed, and nothing else, is signed by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.keys import PRIVATE_KEY_BYTES, SMALL_ORDER, is_signed_by, make_private_key, public_key_of, sign

# RFC 8032, section 7.1, test 2.
PRIVATE = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
DATA = b"\x72"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_keys_and_signatures_are_those_of_the_standard() -> None:
    assert public_key_of(PRIVATE) == PUBLIC
    assert sign(PRIVATE, DATA) == SIGNATURE
    assert is_signed_by(PUBLIC, SIGNATURE, DATA)


def test_every_key_is_new() -> None:
    keys = {make_private_key() for _ in range(20)}
    assert len(keys) == 20
    assert {len(key) for key in keys} == {PRIVATE_KEY_BYTES}


def test_other_data_another_key_or_another_signature_is_not_signed() -> None:
    assert not is_signed_by(PUBLIC, SIGNATURE, b"\x73")
    assert not is_signed_by(public_key_of(make_private_key()), SIGNATURE, DATA)
    assert not is_signed_by(PUBLIC, "00" + SIGNATURE[2:], DATA)


@given(st.text(max_size=140) | st.just(PUBLIC), st.text(max_size=140) | st.just(SIGNATURE), st.binary(max_size=8))
def test_what_is_no_key_and_no_signature_has_signed_nothing(key: str, signature: str, data: bytes) -> None:
    assert is_signed_by(key, signature, data) == ((key, signature, data) == (PUBLIC, SIGNATURE, DATA))


@pytest.mark.parametrize("key", ["", PUBLIC[:-2], PUBLIC + "00", "zz" * 32, "é" * 64, "\ud800"])
@pytest.mark.parametrize("signature", ["", SIGNATURE, SIGNATURE[:-2], SIGNATURE + "00", "00" * 64, "zz" * 64])
def test_a_broken_key_has_signed_nothing(key: str, signature: str) -> None:
    assert not is_signed_by(key, signature, DATA)


@pytest.mark.parametrize("private", [b"", bytes(31), bytes(33)])
def test_what_is_no_private_key_is_refused(private: bytes) -> None:
    for use in (public_key_of, lambda key: sign(key, DATA)):
        with pytest.raises(ValueError, match="32"):
            use(private)


@pytest.mark.parametrize("sign_of_x", [0, 0x80])
@pytest.mark.parametrize("point", sorted(SMALL_ORDER))
def test_a_key_that_everybody_can_sign_for_has_signed_nothing(point: str, sign_of_x: int) -> None:
    key = point[:-2] + f"{int(point[-2:], 16) | sign_of_x:02x}"
    neutral = "01" + "00" * 63  # R is the neutral element, S is 0: it fits where the key adds nothing
    assert not any(is_signed_by(key, neutral, bytes([text])) for text in range(16))
