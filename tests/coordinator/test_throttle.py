"""How often an address may try what is not good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.throttle import NUM_ATTEMPTS, PER_S, Throttle, network_of

ADDRESS = "192.0.2.1"


def spent(throttle: Throttle, address: str = ADDRESS, now_s: float = 0.0) -> None:
    for _ in range(NUM_ATTEMPTS):
        assert throttle.take(address, now_s) == 0.0


def test_ten_attempts_may_be_made_at_once_and_the_eleventh_waits_for_its_share_of_the_minute() -> None:
    throttle = Throttle()
    spent(throttle)
    assert throttle.take(ADDRESS, 0.0) == pytest.approx(PER_S / NUM_ATTEMPTS)
    assert throttle.take(ADDRESS, 5.0) == pytest.approx(1.0)
    assert throttle.take(ADDRESS, 6.0) == 0.0
    assert throttle.take(ADDRESS, 6.0) > 0


def test_an_attempt_that_was_good_counts_for_nothing() -> None:
    throttle = Throttle()
    for now_s in range(100):
        assert throttle.take(ADDRESS, now_s / 100) == 0.0
        throttle.give_back(ADDRESS, now_s / 100)
    assert len(throttle) == 0


def test_attempts_side_by_side_cannot_slip_through() -> None:
    """All are taken before the first is found to be bad."""
    throttle = Throttle()
    assert [throttle.take(ADDRESS, 0.0) == 0.0 for _ in range(50)].count(True) == NUM_ATTEMPTS


def test_one_address_does_not_hold_up_another() -> None:
    throttle = Throttle()
    spent(throttle)
    assert throttle.take("192.0.2.2", 0.0) == 0.0


def test_no_more_addresses_than_the_limit_are_remembered() -> None:
    throttle = Throttle(max_addresses=100)
    for number in range(1000):
        throttle.take(f"10.0.{number // 256}.{number % 256}", 0.0)
    assert len(throttle) == 100
    assert throttle.take(ADDRESS, 0.0) == 0.0


def test_an_address_that_goes_on_is_not_the_one_that_is_forgotten() -> None:
    throttle = Throttle(max_addresses=3)
    for number in range(NUM_ATTEMPTS):
        assert throttle.take(ADDRESS, 0.0) == 0.0
        throttle.take(f"192.0.2.{100 + number}", 0.0)
    assert throttle.take(ADDRESS, 0.0) > 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    throttle = Throttle()
    spent(throttle, now_s=100.0)
    assert throttle.take(ADDRESS, 50.0) > 0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
        ("x" * 1000, "x" * 2000, True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, is_same: bool) -> None:
    assert (network_of(one) == network_of(other)) is is_same
    assert len(network_of(one)) <= 64


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.booleans(), st.floats(0, 100)), max_size=200))
def test_nobody_gets_more_attempts_than_the_time_allows(steps: list[tuple[str, bool, float]]) -> None:
    throttle, now_s, bad = Throttle(), 0.0, {"a": 0, "b": 0, "c": 0}
    for address, is_good, later_s in steps:
        now_s += later_s
        if throttle.take(address, now_s) == 0.0:
            if is_good:
                throttle.give_back(address, now_s)
            else:
                bad[address] += 1
        assert bad[address] <= NUM_ATTEMPTS + now_s * NUM_ATTEMPTS / PER_S + 1e-6


def test_looking_is_no_attempt() -> None:
    throttle = Throttle(num_attempts=2)
    assert [throttle.wait_s("10.0.0.1", 0.0) for _ in range(5)] == [0.0] * 5
    assert [throttle.take("10.0.0.1", 0.0) for _ in range(2)] == [0.0, 0.0]
    assert throttle.wait_s("10.0.0.1", 0.0) == throttle.take("10.0.0.1", 0.0) == 30.0
    assert throttle.wait_s("10.0.0.1", 30.0) == 0.0
