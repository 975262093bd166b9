"""Who a node is, and what its hello signs: for one pool, one connection, one purpose."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identity import hello_bytes, node_id_of

KEY = "3d" * 32
NONCE, AUDIENCE, NODE = "5f" * 32, "pool.example:8443", "0a" * 16


def test_a_nodes_id_is_the_beginning_of_its_keys_hash() -> None:
    assert node_id_of(KEY) == hashlib.sha256(bytes.fromhex(KEY)).hexdigest()[:32]
    assert node_id_of(KEY) != node_id_of("3e" * 32)


@pytest.mark.parametrize("text", ["x", "3", "zz" * 32])
def test_what_is_no_key_has_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        node_id_of(text)


def test_a_hello_is_for_one_nonce_one_pool_and_one_node() -> None:
    said = {
        hello_bytes(nonce, audience, node)
        for nonce, audience, node in itertools.product((NONCE, "60" * 32), (AUDIENCE, "other:1"), (NODE, "0b" * 16))
    }
    assert len(said) == 8


def test_a_hello_is_for_nothing_but_a_hello() -> None:
    assert hello_bytes(NONCE, AUDIENCE, NODE).startswith(b"decentllm-node-hello-v2\0")


def test_the_case_of_a_host_name_does_not_matter() -> None:
    assert hello_bytes(NONCE, "Pool.Example:8443", NODE) == hello_bytes(NONCE, AUDIENCE, NODE)


WORDS = st.text("abc:.0", max_size=8)


@given(st.tuples(WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS, WORDS))
def test_no_two_hellos_sign_the_same_bytes(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (hello_bytes(*one) == hello_bytes(*other)) == (one == other)
