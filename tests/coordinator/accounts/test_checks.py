"""What an operator may ask for."""

from __future__ import annotations

import math

import pytest

from coordinator.accounts.checks import checked_id, checked_label, checked_max_uses, expiry, is_worth_noting
from tests.coordinator.accounts.wall import Refused


@pytest.mark.parametrize("label", ["x", "Physics lab, room 2.14", "Größe 日本 🙂", "x" * 64, "<b>&\"'"])
def test_a_label_is_what_can_be_shown(label: str) -> None:
    assert checked_label(label) == label


def test_blanks_around_a_label_are_dropped() -> None:
    assert checked_label("  friends ") == "friends"


@pytest.mark.parametrize("label", ["", "   ", "x" * 65, "two\nlines", "\x00", "bell\x07", "\u202egnp.exe", "\ud800"])
def test_other_labels_are_refused(label: str) -> None:
    with Refused("bad_label"):
        checked_label(label)


def test_an_expiry_is_counted_from_now() -> None:
    assert expiry(1000.0, 60) == 1060.0
    assert expiry(1000.0, None) is None


@pytest.mark.parametrize("expires_in_s", [0, -1, 0.5, 1e12, math.inf, -math.inf, math.nan])
def test_an_expiry_that_is_past_or_absurd_is_refused(expires_in_s: float) -> None:
    with Refused("bad_expiry"):
        expiry(1000.0, expires_in_s)


@pytest.mark.parametrize("max_uses", [None, 1, 1_000_000])
def test_uses_are_counted_or_free(max_uses: int | None) -> None:
    assert checked_max_uses(max_uses) == max_uses


@pytest.mark.parametrize("max_uses", [0, -1, 1_000_001, 2**70])
def test_other_numbers_of_uses_are_refused(max_uses: int) -> None:
    with Refused("bad_max_uses"):
        checked_max_uses(max_uses)


def test_an_id_that_cannot_be_ours_is_not_found() -> None:
    assert checked_id("0a1b") == "0a1b"
    for given_id in ("\ud800", "\u0661", "ä"):
        with Refused("not_found"):
            checked_id(given_id)


def test_a_use_is_noted_once_a_minute() -> None:
    assert is_worth_noting(100.0, None)
    assert not is_worth_noting(159.0, 100.0)
    assert is_worth_noting(160.0, 100.0)


def test_a_clock_that_was_set_back_does_not_stop_the_notes() -> None:
    assert is_worth_noting(100.0, 1_000_000.0)
