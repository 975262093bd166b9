"""Errors for people: a title, a sentence, a code."""

from __future__ import annotations

import pickle

import pytest

from client.errors import ClientError, JoinError, WeightsError, WorkerError

KINDS = [ClientError, JoinError, WeightsError, WorkerError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_its_sentence_and_keeps_its_code(kind: type[ClientError]) -> None:
    error = kind("some_code", "One sentence.")
    assert (str(error), error.code, error.message) == ("One sentence.", "some_code", "One sentence.")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_trip_between_processes(kind: type[ClientError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("some_code", "One sentence.")))
    assert (type(copy), copy.code, str(copy)) == (kind, "some_code", "One sentence.")


def test_each_kind_has_a_title_of_its_own() -> None:
    assert len({kind.title for kind in KINDS}) == len(KINDS)
