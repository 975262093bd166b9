"""Ed25519 keys (RFC 8032): who a node is. Private keys are 32 raw bytes, everything that travels is hex."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_KEY_BYTES = 32


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
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
