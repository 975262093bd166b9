"""The system's random numbers."""

from __future__ import annotations

from protocol.env import Random
from shell.randomness import SystemRandom

RANDOM: Random = SystemRandom()


def test_hex_ids_have_their_length_and_differ() -> None:
    ids = {RANDOM.token_hex(16) for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id_) == 32 and set(id_) <= set("0123456789abcdef") for id_ in ids)


def test_numbers_stay_within_their_bounds() -> None:
    assert {RANDOM.below(3) for _ in range(200)} == {0, 1, 2}
    assert RANDOM.below(1) == 0
    assert 0 <= RANDOM.below(2**63) < 2**63
    assert all(2.0 <= RANDOM.uniform(2.0, 3.0) <= 3.0 for _ in range(100))
