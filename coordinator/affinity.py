"""Which prompts begin alike: running hashes of a prompt's blocks. Pure.

Two prompts of one tenant share the first n hashes exactly when they share the first n blocks, so a chain that has seen
one may have the other's beginning cached. Salted by tenant: nobody can find out by timing what others ask (Gu et al.
2025, "Auditing Prompt Caching in Language Model APIs").
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

BLOCK_TOKENS = 256
HASH_BYTES = 8


def affinity_of(tokens: Sequence[int], tenant: str) -> tuple[int, ...]:
    """One hash per whole block of BLOCK_TOKENS, each over everything up to its end; the longest prefix last."""
    running = hashlib.blake2b(hashlib.sha256(tenant.encode()).digest(), digest_size=HASH_BYTES)
    hashes = []
    for stop in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        running.update(array("i", tokens[stop - BLOCK_TOKENS : stop]).tobytes())
        hashes.append(int.from_bytes(running.digest(), "big"))
    return tuple(hashes)
