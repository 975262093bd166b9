"""Who this node is: a private key, made once and kept; its id follows from it (protocol/identity.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from client.errors import JoinError
from protocol.env import Env
from protocol.identity import hello_bytes, node_id_of
from protocol.values import NodeId
from shell.keys import PRIVATE_KEY_BYTES, public_key_of, sign

KEY_FILE = "node-key"
OLD_ID_FILE = "node-id"
"""Before version 2 of the protocol a node was whoever knew its id; such an id is worth nothing now."""
_KEY = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Identity:
    """`private_key` is 32 raw bytes and leaves this machine in no form; it is in no log, as it is in no repr."""

    node_id: NodeId
    private_key: bytes = field(repr=False)

    @classmethod
    def of(cls, private_key: bytes) -> Identity:
        return cls(node_id_of(public_key_of(private_key)), private_key)

    @property
    def public_key(self) -> str:
        return public_key_of(self.private_key)

    def hello_proof(self, nonce: str, audience: str) -> str:
        """The signature of a hello to that pool, in answer to its nonce."""
        return sign(self.private_key, hello_bytes(nonce, audience, self.node_id))


def load_identity(data_dir: Path, env: Env) -> Identity:
    """The node's identity, made if there is none. Raises JoinError where it cannot be read or kept.

    A file that is damaged is left as it is: a new key would be another node, and the old one could not be had back."""
    path = data_dir / KEY_FILE
    try:
        kept = env.disk.read(path)
        if kept is None:
            kept = env.random.token_hex(PRIVATE_KEY_BYTES).encode()
            env.disk.write_private(path, kept + b"\n")
        env.disk.remove(data_dir / OLD_ID_FILE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise JoinError("bad_folder", f"The folder {data_dir} cannot be used: {reason}.") from None
    if not _KEY.fullmatch(kept.strip()):
        raise JoinError("bad_key_file", f"The node's key in {path} is damaged; restore it, or remove the file.")
    return Identity.of(bytes.fromhex(kept.strip().decode("ascii")))
