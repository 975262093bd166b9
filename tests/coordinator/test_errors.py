"""What the coordinator tells people: a code for programs, a sentence for them."""

from __future__ import annotations

from coordinator.config import ConfigError
from coordinator.errors import GenerationFailed, PoolError, RequestRefused


def test_every_error_has_a_code_and_is_its_sentence() -> None:
    for error in (
        RequestRefused("no_capacity", "Try later.", 5.0),
        GenerationFailed("worker_died", "It died."),
        ConfigError("Bad."),
    ):
        assert isinstance(error, PoolError)
        assert error.code
        assert str(error) == error.message


def test_a_refusal_says_whether_to_try_again() -> None:
    assert RequestRefused("x", "y", None).retry_after_s is None
    assert RequestRefused("x", "y", 5.0).retry_after_s == 5.0
