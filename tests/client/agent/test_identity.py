"""Who a node is: a key that is made once, kept for itself, and never thrown away by mistake."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from client.agent.identity import KEY_FILE, Identity, load_identity
from client.errors import JoinError
from protocol.identity import hello_bytes, node_id_of
from shell import AsyncioEnv
from shell.keys import is_signed_by
from tests.fakes.virtual_env import VirtualWorld


def test_the_key_is_made_once_and_kept(tmp_path: Path, env: AsyncioEnv) -> None:
    first = load_identity(tmp_path, env)
    assert load_identity(tmp_path, env) == first
    assert first.node_id == node_id_of(first.public_key)
    assert bytes.fromhex((tmp_path / KEY_FILE).read_text()) == first.private_key


def test_only_this_user_can_read_the_key(tmp_path: Path, env: AsyncioEnv) -> None:
    load_identity(tmp_path, env)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_two_machines_are_two_nodes() -> None:
    world = VirtualWorld()
    one, other = (load_identity(Path("/data"), world.env(name)) for name in ("one", "other"))
    assert one.node_id != other.node_id


def test_the_key_is_in_no_repr() -> None:
    identity = Identity.of(b"\x07" * 32)
    assert identity.private_key.hex() not in repr(identity)
    assert repr(identity.private_key) not in repr(identity)


def test_a_hello_proof_is_for_one_pool_and_one_nonce() -> None:
    identity = Identity.of(b"\x07" * 32)
    proof = identity.hello_proof("5" * 64, "Pool.example:8443")
    assert is_signed_by(identity.public_key, proof, hello_bytes("5" * 64, "pool.example:8443", identity.node_id))
    assert not is_signed_by(identity.public_key, proof, hello_bytes("6" * 64, "pool.example:8443", identity.node_id))
    assert not is_signed_by(identity.public_key, proof, hello_bytes("5" * 64, "other.example", identity.node_id))


@pytest.mark.parametrize("kept", [b"", b"\n", b"ab" * 31, b"ab" * 33, b"AB" * 32, b"x" * 64, b"\xff" * 64])
def test_a_damaged_key_is_refused_by_name_and_left_as_it_is(tmp_path: Path, env: AsyncioEnv, kept: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(kept)
    with pytest.raises(JoinError) as caught:
        load_identity(tmp_path, env)
    assert caught.value.code == "bad_key_file"
    assert str(path) in str(caught.value)
    assert path.read_bytes() == kept


def test_a_blank_line_behind_the_key_is_no_damage(tmp_path: Path, env: AsyncioEnv) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"07" * 32 + b"\r\n\n")
    assert load_identity(tmp_path, env) == Identity.of(b"\x07" * 32)


def test_an_id_of_an_older_version_is_removed_and_not_used(tmp_path: Path, env: AsyncioEnv) -> None:
    old = tmp_path / "node-id"
    old.write_text("a" * 32)
    assert load_identity(tmp_path, env).node_id != "a" * 32
    assert not old.exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, env: AsyncioEnv) -> None:
    folder = tmp_path / "file"
    folder.write_text("")
    with pytest.raises(JoinError, match=f"The folder {folder} cannot be used: ") as caught:
        load_identity(folder, env)
    assert caught.value.code == "bad_folder"
