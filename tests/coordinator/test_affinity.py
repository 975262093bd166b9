"""Hashes of prompts: equal exactly as far as the prompts are, and only for the same tenant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.affinity import BLOCK_TOKENS, affinity_of, prefix_hashes
from protocol.values import KV_BLOCK_TOKENS

PROMPT = tuple(range(3 * BLOCK_TOKENS + 17))


def test_there_is_one_hash_per_whole_block() -> None:
    for num_tokens, num_hashes in ((0, 0), (1, 0), (255, 0), (256, 1), (511, 1), (512, 2), (len(PROMPT), 3)):
        assert len(affinity_of(PROMPT[:num_tokens], "ada")) == num_hashes


def test_a_longer_prompt_has_the_hashes_of_its_beginning() -> None:
    assert affinity_of(PROMPT, "ada")[:2] == affinity_of(PROMPT[: 2 * BLOCK_TOKENS], "ada")


def test_prompts_of_different_tenants_have_nothing_in_common() -> None:
    assert not set(affinity_of(PROMPT, "ada")) & set(affinity_of(PROMPT, "bob"))
    assert not set(affinity_of(PROMPT, "")) & set(affinity_of(PROMPT, "ada"))


@given(st.integers(0, len(PROMPT) - 1))
def test_after_the_first_other_token_no_hash_is_the_same(at: int) -> None:
    other = (*PROMPT[:at], PROMPT[at] + 1, *PROMPT[at + 1 :])
    num_same = at // BLOCK_TOKENS
    before, after = affinity_of(PROMPT, "ada"), affinity_of(other, "ada")
    assert before[:num_same] == after[:num_same]
    assert not set(before[num_same:]) & set(after[num_same:])


def test_the_same_block_elsewhere_is_another_prefix() -> None:
    block = PROMPT[:BLOCK_TOKENS]
    assert len(set(affinity_of((*block, *block, *block), "ada"))) == 3


def test_hashes_fit_64_bits() -> None:
    assert all(0 <= number < 2**64 for number in affinity_of((2**31 - 1,) * BLOCK_TOKENS, "ada"))


# ---------------------------------------------------------------- names in stages' caches


@given(st.integers(0, 99))
def test_names_are_the_same_exactly_as_far_as_the_tokens_are(at: int) -> None:
    tokens = PROMPT[:100]
    other = (*tokens[:at], tokens[at] + 1, *tokens[at + 1 :])
    num_same = at // KV_BLOCK_TOKENS
    before, after = prefix_hashes(tokens, "ada"), prefix_hashes(other, "ada")
    assert len(before) == len(set(before)) == 100 // KV_BLOCK_TOKENS
    assert before[:num_same] == after[:num_same]
    assert not set(before[num_same:]) & set(after[num_same:])
    assert prefix_hashes(tokens[:at], "ada") == before[:num_same]


def test_tenants_have_no_name_in_common_and_nobody_has_any() -> None:
    assert not set(prefix_hashes(PROMPT, "ada")) & set(prefix_hashes(PROMPT, "bob"))
    assert prefix_hashes(PROMPT, "") == ()


def test_a_name_has_128_bits() -> None:
    assert {len(name) for name in prefix_hashes(PROMPT, "ada")} == {32}
