from __future__ import annotations

import pytest

from benchmarks.recovery.counting import (
    Fate,
    Tally,
    fate,
    longest_gap_s,
    quantile,
    recovery,
    tally,
    usual_gap_s,
)
from benchmarks.recovery.reader import Chain, Heard

EXPECTED = [5, 6, 7, 7, 8]
FIRST, SECOND = Chain(0.5, ("a", "b")), Chain(3.5, ("a", "c"))


def heard(times_s: list[float], *chains: Chain, error: str = "") -> Heard:
    return Heard(list(range(len(times_s))), times_s, list(chains), 10, 1, not error, error)


@pytest.mark.parametrize(
    ("tokens", "error", "wanted"),
    [
        ([5, 6, 7, 7, 8], "", Fate.WHOLE),
        ([5, 6, 7], "", Fate.LOST),
        ([], "", Fate.LOST),
        ([5, 6, 7, 7, 8], "overloaded", Fate.LOST),
        ([5, 6, 6, 7, 7, 8], "", Fate.DUPLICATED),
        ([5, 6, 7, 5, 6, 7, 7, 8], "", Fate.DUPLICATED),
        ([5, 6, 7, 7, 7, 8], "", Fate.DUPLICATED),
        ([5, 6, 7, 8], "", Fate.CHANGED),
        ([5, 6, 7, 7, 9], "", Fate.CHANGED),
        ([5, 6, 7, 7, 8, 9], "", Fate.CHANGED),
    ],
)
def test_an_answer_is_judged_by_the_undisturbed_one(tokens: list[int], error: str, wanted: Fate) -> None:
    assert fate(tokens, EXPECTED, error) is wanted


def test_all_that_is_not_whole_is_counted_and_tallies_add_up() -> None:
    answers = [(Heard(tokens=[1, 2]), [1, 2]), (Heard(tokens=[1]), [1, 2]), (Heard(tokens=[1, 1, 2]), [1, 2])]
    found = tally(answers, 2) + tally([(Heard(tokens=[3]), [1])], 1)
    assert found == Tally(num_answers=4, num_disturbed=3, num_lost=1, num_duplicated=1, num_changed=1)
    assert found.num_wrong == 3


def test_a_recovery_counts_to_the_first_token_of_the_chain_after_the_fault() -> None:
    answer = heard([1.0, 2.0, 3.1, 4.5, 5.5], FIRST, SECOND)
    found = recovery("it", answer, 3.0)
    assert found is not None
    assert found.gap_s == 1.5, "the token at 3.1 was on its way already"
    assert (found.until_chain_s, found.rest_s, found.usual_s, found.num_rows) == (0.5, 1.0, 1.0, 12)


def test_an_answer_that_needed_no_other_chain_has_not_recovered() -> None:
    assert recovery("it", heard([1.0, 2.0], FIRST), 1.5) is None
    assert recovery("it", heard([1.0, 2.0], FIRST, SECOND), 1.5) is None, "the new chain has given nothing"


def test_gaps_are_between_tokens() -> None:
    answer = heard([1.0, 2.0, 5.0, 5.5])
    assert longest_gap_s(answer) == 3.0
    assert longest_gap_s(answer, 5.0) == 0.5
    assert usual_gap_s(answer, 2.5) == 1.0
    assert usual_gap_s(heard([1.0]), 9.0) == longest_gap_s(heard([])) == 0.0


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(map(float, range(30))), 0.99) == 29.0
    assert quantile([], 0.5) == 0.0
