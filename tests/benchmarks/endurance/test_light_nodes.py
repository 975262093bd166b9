"""Simulated nodes: addresses of their own, tokens that depend on everything before them."""

from __future__ import annotations

import ipaddress

from benchmarks.endurance.light_nodes import first_digest, next_token, source_of


def test_each_node_has_an_address_of_its_own_on_this_machine() -> None:
    addresses = [ipaddress.ip_address(source_of(number)) for number in range(10_000)]
    assert len(set(addresses)) == len(addresses)
    assert all(address.is_loopback for address in addresses)


def test_another_prompt_gives_another_answer() -> None:
    answers = set()
    for prompt in ((1, 2, 3), (1, 3, 2), (1, 2)):
        digest, tokens = first_digest(prompt), []
        for _ in range(8):
            token, digest = next_token(digest)
            tokens.append(token)
        answers.add(tuple(tokens))
    assert len(answers) == 3
