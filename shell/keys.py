"""Ed25519 keys (RFC 8032): who a node is. Private keys are 32 raw bytes, everything that travels is hex."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_KEY_BYTES = 32
SMALL_ORDER = frozenset(
    {
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    }
)
"""The points of order 1, 2, 4 and 8 (y coordinates, the sign of x left out), also as they are written without being
reduced: nobody has such a key, because everybody can make signatures that fit it."""


def make_private_key() -> bytes:
    """A new key, from the system's random numbers."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key_of(private: bytes) -> str:
    """64 hex digits. Raises ValueError if `private` is not 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign(private: bytes, data: bytes) -> str:
    """128 hex digits. Raises ValueError if `private` is not 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(data).hex()


def is_signed_by(public_key: str, signature: str, data: bytes) -> bool:
    """Whether the holder of `public_key` signed `data`. What is no key or no signature at all has not signed."""
    try:
        key = bytes.fromhex(public_key)
        if _without_sign(key) in SMALL_ORDER:
            return False
        Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _without_sign(key: bytes) -> str:
    """The y coordinate: the last byte's highest bit is the sign of x (RFC 8032, section 5.1.2)."""
    return (key[:-1] + bytes([key[-1] & 0x7F])).hex() if key else ""
