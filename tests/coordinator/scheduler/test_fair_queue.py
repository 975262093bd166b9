"""Who is tried when, among those that wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.scheduler.fair_queue import FairQueue
from coordinator.scheduler.state import Waiting
from tests.fakes import pool_facts as facts


def waiting(number: int, tenant: str = "", num_tokens: int = 100, *, resumed: bool = False) -> Waiting:
    return Waiting(facts.session_id(number), facts.DIGEST, num_tokens, resumed, frozenset(), 120.0, tenant=tenant)


def filled(*requests: Waiting) -> FairQueue:
    queue = FairQueue()
    for request in requests:
        queue.add(request, 0.0)
    return queue


def numbers(queue: FairQueue) -> list[int]:
    order = [place.waiting.session_id for place in queue.order()]
    assert [queue.number(session_id) for session_id in order] == list(range(1, len(order) + 1))
    return [int(session_id, 16) for session_id in order]


def serve_next(queue: FairQueue) -> Waiting:
    first = next(queue.order()).waiting
    queue.started(first.session_id)
    return first


def test_one_tenants_requests_are_tried_as_they_came() -> None:
    assert numbers(filled(*(waiting(n) for n in (3, 1, 2)))) == [3, 1, 2]


def test_tenants_take_turns() -> None:
    requests = [waiting(1, "a"), waiting(2, "a"), waiting(3, "a"), waiting(4, "b"), waiting(5, "b")]
    assert numbers(filled(*requests)) == [1, 4, 2, 5, 3]


def test_who_reserves_twice_as_much_is_served_half_as_often() -> None:
    small = [waiting(n, "small", 100) for n in range(6)]
    large = [waiting(10 + n, "large", 200) for n in range(3)]
    assert numbers(filled(*small, *large)) == [0, 10, 1, 2, 11, 3, 4, 12, 5]


def test_resumed_requests_come_first_as_they_came() -> None:
    queue = filled(waiting(1), waiting(2, resumed=True), waiting(3, "b"), waiting(4, "b", resumed=True))
    assert numbers(queue) == [2, 4, 1, 3]


def test_who_was_alone_for_long_owes_nothing_and_who_comes_back_has_saved_nothing() -> None:
    queue = filled(*(waiting(n, "a") for n in range(10)))
    for _ in range(8):
        serve_next(queue)
    for number in (20, 21, 22):
        queue.add(waiting(number, "b"), 0.0)
    assert numbers(queue) == [20, 8, 21, 9, 22]


def test_a_newcomer_is_served_before_the_second_request_of_a_flood() -> None:
    queue = filled(*(waiting(n, "flood", 1000) for n in range(256)))
    serve_next(queue)
    queue.add(waiting(999, "quiet", 10), 0.0)
    assert numbers(queue)[0] == 999


def test_whoever_leaves_the_queue_pays_nothing() -> None:
    queue = filled(waiting(1, "a", 5000), waiting(2, "a"), waiting(3, "b"), waiting(4, "b"))
    queue.remove(facts.session_id(1))
    assert numbers(queue) == [2, 3, 4]
    queue.remove(facts.session_id(1))
    assert len(queue) == 3


def test_those_before_the_one_that_starts_have_been_passed() -> None:
    queue = filled(waiting(1, "a"), waiting(2, "a"), waiting(3, "a"))
    queue.started(facts.session_id(2), [queue.place(facts.session_id(1))])
    assert [place.num_passed for place in queue.order()] == [1, 0]


def test_the_newest_of_whoever_has_most_is_one_too_many() -> None:
    queue = filled(waiting(1, "a"), waiting(2, "b"), waiting(3, "a"), waiting(4, "c"))
    surplus = queue.one_too_many()
    assert surplus is not None
    assert surplus.session_id == facts.session_id(3)
    assert filled(waiting(1, resumed=True)).one_too_many() is None


steps = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.booleans(), st.booleans()), max_size=60)


@given(steps)
def test_any_order_of_events_keeps_arrival_order_within_a_tenant(steps: list[tuple[str, int, bool, bool]]) -> None:
    queue, expected = FairQueue(), set()
    for number, (tenant, num_tokens, resumed, serves) in enumerate(steps):
        queue.add(waiting(number, tenant, num_tokens, resumed=resumed), 0.0)
        expected.add(number)
        if serves:
            expected.remove(int(serve_next(queue).session_id, 16))
        places = list(queue.order())
        assert set(numbers(queue)) == expected
        assert len(queue) == len(expected)
        flags = [place.waiting.resumed for place in places]
        assert flags == sorted(flags, reverse=True)
        for name in "abc":
            mine = [p.number for p in places if p.waiting.tenant == name and not p.waiting.resumed]
            assert mine == sorted(mine)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 500)), min_size=2, max_size=60))
def test_while_both_wait_two_tenants_are_served_alike_but_for_one_request(requests: list[tuple[str, int]]) -> None:
    queue = filled(*(waiting(n, tenant, size) for n, (tenant, size) in enumerate(requests)))
    largest = max(size for _, size in requests)
    served = {"a": 0, "b": 0}
    while {place.waiting.tenant for place in queue.order()} == {"a", "b"}:
        done = serve_next(queue)
        served[done.tenant] += done.num_tokens
        assert abs(served["a"] - served["b"]) <= 2 * largest
