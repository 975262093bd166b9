"""Secrets: long enough, url-safe, kept as hashes."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.accounts import tokens
from tests.fakes.virtual_env import SeededRandom

RANDOM = SeededRandom(random.Random(1))
SECRET_OF_LINKS = re.compile(r"[A-Za-z0-9_-]{8,128}")
"""protocol.values.Secret: what fits into links and hellos."""


@pytest.mark.parametrize("prefix", [tokens.OPERATOR_LINK, tokens.INVITATION, tokens.SESSION])
def test_a_token_has_256_random_bits_and_fits_a_link(prefix: str) -> None:
    token = tokens.new_token(RANDOM, prefix)
    assert token.startswith(prefix)
    assert len(bytes.fromhex(token.removeprefix(prefix))) == 32
    assert SECRET_OF_LINKS.fullmatch(token)
    assert tokens.new_token(RANDOM, prefix) != token


def test_what_is_kept_is_the_sha_256() -> None:
    assert tokens.hash_of("in-abc") == hashlib.sha256(b"in-abc").hexdigest()


@given(st.text(st.characters(codec=None)))
def test_any_text_has_a_hash(text: str) -> None:
    assert re.fullmatch("[0-9a-f]{64}", tokens.hash_of(text))


def test_text_that_cannot_be_encoded_has_one_too() -> None:
    assert tokens.hash_of("\ud800") != tokens.hash_of("\udc00")


def test_a_key_is_its_id_and_its_secret() -> None:
    secret = tokens.new_token(RANDOM, "")
    key = tokens.format_api_key("0123abcd", secret)
    assert re.fullmatch(r"sk-[0-9a-f]{8}-[A-Za-z0-9_-]{43,}", key)
    assert tokens.parse_api_key(key) == ("0123abcd", secret)


@pytest.mark.parametrize(
    "text",
    ["", "sk-", "sk-0123abcd-", "sk-0123abcd-short", f"sk-0123ABCD-{'a' * 64}", f"pk-0123abcd-{'a' * 64}",
     f"sk-0123abcd-{'a' * 129}", f"sk-0123abcd-{'a' * 64}\n", f" sk-0123abcd-{'a' * 64}", f"sk-0123abcd-{'ä' * 64}"],
)  # fmt: skip
def test_what_is_no_key_is_none(text: str) -> None:
    assert tokens.parse_api_key(text) is None
