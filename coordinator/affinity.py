"""Which prompts begin alike: running hashes of a prompt's blocks. Pure.

Two prompts of one tenant share the first n hashes exactly when they share the first n blocks, so a chain that has seen
one may have the other's beginning cached. Salted by tenant: nobody can find out by timing what others ask (Gu et al.
2025, "Auditing Prompt Caching in Language Model APIs").
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

from protocol.values import KV_BLOCK_TOKENS

BLOCK_TOKENS = 256
HASH_BYTES = 8
PREFIX_HASH_BYTES = 16
"""What a stage finds under a name is part of an answer: nobody may be able to make another tenant's name, and 64 bits
could be tried out."""


def affinity_of(tokens: Sequence[int], tenant: str) -> tuple[int, ...]:
    """One hash per whole block of BLOCK_TOKENS, each over everything up to its end; the longest prefix last."""
    return tuple(int.from_bytes(digest, "big") for digest in _running(tokens, tenant, BLOCK_TOKENS, HASH_BYTES))


def prefix_hashes(tokens: Sequence[int], tenant: str) -> tuple[str, ...]:
    """The names of these tokens' whole blocks of KV_BLOCK_TOKENS in stages' prefix caches, as hex; none for nobody.

    Each is over everything up to its block's end, and over the tenant: the same tokens of another have other names."""
    if not tenant:
        return ()
    return tuple(digest.hex() for digest in _running(tokens, tenant, KV_BLOCK_TOKENS, PREFIX_HASH_BYTES))


def _running(tokens: Sequence[int], tenant: str, block_tokens: int, num_bytes: int) -> Iterator[bytes]:
    """After each whole block, a digest of so many bytes over the tenant and everything up to there."""
    running = hashlib.blake2b(hashlib.sha256(tenant.encode()).digest(), digest_size=num_bytes)
    data = array("i", tokens)
    for stop in range(block_tokens, len(data) + 1, block_tokens):
        running.update(data[stop - block_tokens : stop].tobytes())
        yield running.digest()
