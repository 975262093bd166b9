"""Which prompts begin alike: running hashes of a prompt's blocks. Pure.

Two prompts of one tenant share the first n hashes exactly when they share the first n blocks, so a chain that has seen
one may have the other's beginning cached. Salted by tenant: nobody can find out by timing what others ask (Gu et al.
2025, "Auditing Prompt Caching in Language Model APIs").
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from protocol.values import KV_BLOCK_TOKENS

BLOCK_TOKENS = 256
HASH_BYTES = 8
PREFIX_HASH_BYTES = 16
"""What a stage finds under a name is part of an answer: nobody may be able to make another tenant's name, and 64 bits
could be tried out."""
TOKEN_BYTES = array("i").itemsize


def affinity_of(tokens: Sequence[int], tenant: str) -> tuple[int, ...]:
    """One hash per whole block of BLOCK_TOKENS, each over everything up to its end; the longest prefix last."""
    running = hashlib.blake2b(hashlib.sha256(tenant.encode()).digest(), digest_size=HASH_BYTES)
    hashes = []
    for stop in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        running.update(array("i", tokens[stop - BLOCK_TOKENS : stop]).tobytes())
        hashes.append(int.from_bytes(running.digest(), "big"))
    return tuple(hashes)


def prefix_hashes(tokens: Sequence[int], tenant: str) -> tuple[str, ...]:
    """The names of these tokens' whole blocks of KV_BLOCK_TOKENS in stages' prefix caches, as hex; none for nobody.

    Each is over everything up to its block's end, and over the tenant: the same tokens of another have other names."""
    if not tenant:
        return ()
    running = hashlib.blake2b(hashlib.sha256(tenant.encode()).digest(), digest_size=PREFIX_HASH_BYTES)
    num_bytes, data = KV_BLOCK_TOKENS * TOKEN_BYTES, array("i", tokens).tobytes()
    names = []
    for start in range(0, len(data) - num_bytes + 1, num_bytes):
        running.update(data[start : start + num_bytes])
        names.append(running.hexdigest())
    return tuple(names)
