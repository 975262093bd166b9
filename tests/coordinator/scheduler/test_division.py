"""Several models in one pool: floors first, then shares of what is wanted; who holds something stays with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.division import Claim, Part, divide
from tests.fakes import pool_facts as facts

BOTH = {"a": 1.0, "b": 1.0}


def part(number: int, memory: float = 10.0, holds: str | None = None, speeds: dict[str, float] | None = None) -> Part:
    return Part(facts.key(number), memory, BOTH if speeds is None else speeds, holds)


def parts(count: int) -> list[Part]:
    return [part(n) for n in range(1, count + 1)]


def shares(claims: list[Claim], devices: list[Part]) -> Counter[str]:
    return Counter(divide(claims, devices).values())


def test_one_model_gets_everything_that_measured_it() -> None:
    assert divide([Claim("a", 5.0)], [part(1), part(2, speeds={})]) == {facts.key(1): "a"}


def test_models_of_which_nothing_is_known_share_alike() -> None:
    assert shares([Claim("a", 5.0), Claim("b", 5.0)], parts(8)) == {"a": 4, "b": 4}


def test_shares_follow_what_is_wanted() -> None:
    assert shares([Claim("a", 5.0, demand=30.0), Claim("b", 5.0, demand=10.0)], parts(8)) == {"a": 6, "b": 2}


def test_floors_come_before_what_is_wanted() -> None:
    claims = [Claim("a", 8.0, demand=99.0), Claim("b", 8.0, num_replicas=3, demand=1.0)]
    assert shares(claims, parts(4)) == {"a": 1, "b": 3}


def test_a_model_that_nobody_asks_for_is_served_nevertheless() -> None:
    assert shares([Claim("a", 5.0, demand=100.0), Claim("b", 5.0, demand=0.0)], parts(8))["b"] >= 1


def test_a_device_works_only_for_what_it_measured() -> None:
    devices = [part(n, speeds={"a": 1.0}) for n in range(1, 4)]
    assert shares([Claim("a", 5.0), Claim("b", 5.0)], devices) == {"a": 3}


def test_who_holds_layers_stays_where_shares_change_a_little() -> None:
    devices = [part(n, holds="a" if n <= 4 else "b") for n in range(1, 9)]
    claims = [Claim("a", 5.0, demand=10.0), Claim("b", 5.0, demand=14.0)]
    assert divide(claims, devices) == {p.key: p.holds for p in devices}


def test_who_holds_layers_goes_where_the_need_is_clearly_greater() -> None:
    devices = [part(n, holds="a" if n <= 6 else "b") for n in range(1, 9)]
    claims = [Claim("a", 5.0, demand=10.0), Claim("b", 5.0, demand=90.0)]
    assert shares(claims, devices)["b"] > 2


def test_a_floor_takes_from_those_above_theirs_and_from_nobody_else() -> None:
    devices = [part(n, holds="a") for n in range(1, 5)]
    assert shares([Claim("a", 8.0, num_replicas=1), Claim("b", 8.0, num_replicas=1)], devices)["b"] >= 1
    assert shares([Claim("a", 8.0, num_replicas=4), Claim("b", 8.0, num_replicas=1)], devices) == {"a": 4}


@given(st.permutations(range(1, 9)), st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_the_order_of_devices_and_models_does_not_matter(order: list[int], one: float, other: float) -> None:
    claims = [Claim("a", 15.0, demand=one), Claim("b", 8.0, demand=other)]
    found = divide(claims, [part(n, memory=float(n)) for n in order])
    assert found == divide(claims[::-1], [part(n, memory=float(n)) for n in range(1, 9)])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(1.0, 20.0)), min_size=1, max_size=12))
def test_a_division_that_is_carried_out_stays(devices: list[tuple[str | None, float]]) -> None:
    claims = [Claim("a", 15.0, demand=30.0), Claim("b", 8.0, demand=10.0)]
    some = [part(n, memory, holds) for n, (holds, memory) in enumerate(devices, start=1)]
    for _ in range(5):
        found = divide(claims, some)
        after = [replace(p, holds=found[p.key]) for p in some]
        if after == some:
            return
        some = after
    raise AssertionError("devices are handed to and fro")
