"""Who a node is: its id follows from its public key, and a hello proves that it holds the private one.

Signing and checking are shell/keys.py's; here is only what is signed.
"""

from __future__ import annotations

import hashlib

from protocol.values import NodeId

_DOMAIN = b"decentllm-node-hello-v2\0"
"""Domain separation: a signature made for this purpose is good for no other."""


def node_id_of(public_key: str) -> NodeId:
    """The first 32 hex digits of the SHA-256 of the raw Ed25519 public key (64 hex digits)."""
    return NodeId(hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32])


def hello_bytes(nonce: str, audience: str, node_id: str) -> bytes:
    """What a hello signs. `audience` is the host and port that the node connected to, as in the HTTP Host header and
    in lower case: a pool cannot pass another pool's nonce on and pose as the node there."""
    return b"\0".join([_DOMAIN, nonce.encode(), audience.lower().encode(), node_id.encode()])
