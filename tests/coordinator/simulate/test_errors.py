"""Errors are sentences with a code."""

from __future__ import annotations

from coordinator.errors import PoolError
from coordinator.simulate.errors import ImpossibleCommand, ScenarioError


def test_both_errors_are_sentences_with_a_code() -> None:
    for error, code in ((ScenarioError("No."), "bad_scenario"), (ImpossibleCommand("No."), "impossible_command")):
        assert isinstance(error, PoolError)
        assert (str(error), error.code) == ("No.", code)
