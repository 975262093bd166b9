"""A few of the planted bugs, the ones that are found soon; `make simulate-mutants` hunts all of them."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, hunt, planted
from tests.simulation.simulation import simulate

pytestmark = pytest.mark.allowed_logs("")

SOON = (
    "no_new_epoch_on_a_new_chain",
    "sent_before_it_is_committed",
    "replayed_token_by_token",
    "close_overtakes_open",
    "only_the_head_hears_of_the_end",
    "seed_is_lost_on_a_move",
    "more_is_kept_than_was_committed",
    "restored_without_its_tokens",
    "shown_though_it_cannot_be_recorded",
    "the_loser_of_two_chains_is_not_closed",
    "tokens_of_both_chains_are_committed",
    "a_second_chain_that_is_given_up_is_not_closed",
    "names_of_blocks_ignore_the_tenant",
    "names_of_blocks_ignore_the_tokens",
    "a_prompt_begins_behind_what_one_stage_has",
)
LIMIT_CPU_S = 20.0


@pytest.mark.parametrize("name", SOON)
def test_a_planted_bug_is_found(name: str) -> None:
    found = hunt(name, LIMIT_CPU_S)
    assert found.verdict is not None, f"{found.num_histories} histories did not notice"
    assert any("WRONG" in line for line in found.verdict.lines)


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 20


def test_a_planted_bug_is_gone_afterwards() -> None:
    with planted("sent_before_it_is_committed"):
        assert simulate(0).wrong
    assert not simulate(0).wrong
