"""Errors for people: a title, a sentence, a code."""

from __future__ import annotations

import copy

import pytest

from client.errors import ClientError, JoinError, WeightsError, WorkerError

KINDS = [ClientError, JoinError, WeightsError, WorkerError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_its_sentence_and_keeps_its_code(kind: type[ClientError]) -> None:
    error = kind("some_code", "One sentence.")
    assert (str(error), error.code, error.message) == ("One sentence.", "some_code", "One sentence.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_error_says_the_same(kind: type[ClientError]) -> None:
    again = copy.copy(kind("some_code", "One sentence."))
    assert (type(again), again.code, str(again)) == (kind, "some_code", "One sentence.")


def test_each_kind_has_a_title_of_its_own() -> None:
    assert len({kind.title for kind in KINDS}) == len(KINDS)
