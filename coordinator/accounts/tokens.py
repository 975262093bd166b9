"""Secrets: 256 random bits each, shown once, kept as SHA-256. So many bits need no slow hash: they cannot be guessed.

    op-<64 hex digits>                  operator's sign-in link
    in-<64 hex digits>                  invitation
    <64 hex digits>                     session (cookie)
    sk-<8 hex digits>-<64 hex digits>   API key: public id, secret

The prefixes tell people, and programs that look for leaked secrets, what they see.
"""

from __future__ import annotations

import hashlib
import re

from protocol.env import Random

NUM_SECRET_BYTES = 32
OPERATOR_LINK = "op-"
INVITATION = "in-"
SESSION = ""
_API_KEY = re.compile(r"sk-([0-9a-f]{8})-([A-Za-z0-9_-]{43,128})")


def new_token(random: Random, prefix: str) -> str:
    return prefix + random.token_hex(NUM_SECRET_BYTES)


def hash_of(secret: str) -> str:
    """What is kept of a secret. Any text will do, also what cannot be encoded: it comes from strangers."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def format_api_key(key_id: str, secret: str) -> str:
    return f"sk-{key_id}-{secret}"


def parse_api_key(key: str) -> tuple[str, str] | None:
    """(id, secret), or None for what cannot be a key of ours."""
    match = _API_KEY.fullmatch(key)
    return None if match is None else (match[1], match[2])
