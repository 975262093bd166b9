from __future__ import annotations

import pytest

from benchmarks.scheduling.baselines.capacity import FLOOR, Capacity
from benchmarks.scheduling.baselines.petals import PetalsAllocator, Swarm
from tests.benchmarks.scheduling.pool import covers, offer, problem, spans_of

ALLOCATOR = PetalsAllocator(rule=FLOOR)


def adapted(*offers: object) -> dict[int, tuple[int, int]]:
    asked = problem(offers)  # type: ignore[arg-type]
    return spans_of(asked, ALLOCATOR.adapt(asked))


def test_a_server_announces_its_forward_rate_shared_among_its_blocks_or_what_its_network_carries() -> None:
    swarm = Swarm(Capacity(problem([offer("a0", 12), offer("a1", 12, ms=0.001)])))
    assert swarm.throughput(0, 3) == pytest.approx(20_000 / 2)
    assert swarm.throughput(1, 3) == pytest.approx(1e6 / 20), "1 MB/s over rows of 20 bytes"


def test_the_newcomer_takes_the_blocks_with_the_lowest_throughput() -> None:
    held = [offer("a0", 6, 1.0, (0, 6)), offer("a1", 6, 5.0, (6, 12)), offer("a2", 6, 1.0)]
    assert adapted(*held) == {2: (6, 12)}


def test_the_weakest_block_decides_not_the_mean() -> None:
    held = [
        offer("a0", 4, 2.0, (0, 4)),
        offer("a1", 4, 1.0, (4, 8)),
        offer("a2", 4, 3.0, (8, 12)),
        offer("a3", 4, 4.0, (8, 12)),
        offer("a4", 4, 1.0),
    ]
    assert adapted(*held)[4] == (0, 4), "2 ms alone is weaker than 3 and 4 ms together"


def test_blocks_that_nobody_has_come_first() -> None:
    assert adapted(offer("a0", 4, 9.0, (0, 4)), offer("a1", 8)) == {1: (4, 12)}


def test_a_span_is_snapped_to_where_chains_can_continue() -> None:
    held = [offer("a0", 5, 1.0, (0, 5)), offer("a1", 7, 1.0, (5, 12)), offer("a2", 9, 1.0)]
    assert adapted(*held) == {2: (5, 12)}, "9 blocks fit, but chains continue at 0, 5 and 12"


def test_a_server_that_is_too_small_for_every_span_makes_a_boundary_that_the_next_one_uses() -> None:
    held = [offer("a0", 12, 1.0, (0, 6)), offer("a1", 12, 1.0, (6, 12)), offer("a2", 3), offer("a3", 3)]
    spans = {0: (0, 6), 1: (6, 12)} | adapted(*held)
    assert covers([span for i, span in spans.items() if i != 0], 12) or covers(
        [span for i, span in spans.items() if i != 1], 12
    ), "the two small ones together replace a large one"


def test_nobody_moves_while_the_balance_is_good() -> None:
    held = [offer(f"a{i}", 6, 1.0, (0, 6) if i < 2 else (6, 12)) for i in range(4)]
    assert adapted(*held) == {}


def test_a_server_moves_when_the_swarm_would_be_much_better_balanced() -> None:
    held = [offer(f"a{i}", 6, 1.0, (0, 6) if i < 4 else (6, 12)) for i in range(5)]
    moves = adapted(*held)
    assert list(moves.values()) == [(6, 12)]


def test_a_gain_below_the_threshold_moves_nobody() -> None:
    held = [offer(f"a{i}", 6, 1.0, (0, 6) if i < 5 else (6, 12)) for i in range(9)]
    asked = problem(held)
    assert ALLOCATOR.adapt(asked) == [], "4 of 4.5 is 89 %"
    eager = PetalsAllocator(rule=FLOOR, balance_quality=0.99)
    assert eager.adapt(asked) == [], "moving one only turns it round"


def test_no_server_leaves_blocks_that_only_it_has() -> None:
    held = [offer("a0", 6, 9.0, (0, 6)), offer("a1", 6, 0.1, (6, 12))]
    assert adapted(*held) == {}


def test_a_swarm_with_a_gap_that_nobody_free_can_fill_gathers_anew() -> None:
    held = [offer("a0", 8, held=(0, 8)), offer("a1", 8, held=(0, 8))]
    spans = {0: (0, 8), 1: (0, 8)} | adapted(*held)
    assert covers(spans.values(), 12)
