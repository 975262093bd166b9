"""Every refusal has a code and one sentence."""

from __future__ import annotations

import pytest

from coordinator.accounts import AccountError
from coordinator.accounts.errors import SENTENCES
from coordinator.errors import PoolError

PROMISED = {
    "invitation_unknown", "invitation_expired", "invitation_used_up", "link_unknown", "link_expired", "node_blocked",
    "invitation_needed", "bad_key", "key_expired", "not_found", "bad_label", "too_many",
}  # fmt: skip


@pytest.mark.parametrize("code", SENTENCES)
def test_a_code_is_one_sentence(code: str) -> None:
    error = AccountError(code)
    assert isinstance(error, PoolError)
    assert error.code == code
    assert str(error) == error.message
    assert str(error)[0].isupper()
    assert str(error).endswith(".")
    assert ". " not in str(error)


def test_the_codes_that_the_api_knows_are_there() -> None:
    assert set(SENTENCES) >= PROMISED


def test_a_code_that_nobody_explained_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        AccountError("something")
