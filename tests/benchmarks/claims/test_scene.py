from __future__ import annotations

import pytest

from benchmarks.claims.scene import LONG, POOL, SHORT, UNEQUAL, Load, burst, equal, megabits


def test_a_load_is_the_same_for_the_same_seed_only() -> None:
    load = Load(1.0, 30.0)
    assert load.asks(1) == load.asks(1)
    assert load.asks(1) != load.asks(2)


def test_another_rate_asks_for_the_same_lengths_at_other_times() -> None:
    slow, fast = Load(0.5, 60.0).asks(1), Load(2.0, 60.0).asks(1)
    assert len(fast) > len(slow)
    for one, other in zip(slow, fast, strict=False):
        assert (one.num_prompt_tokens, one.num_answer_tokens) == (other.num_prompt_tokens, other.num_answer_tokens)
        assert one.at_s == pytest.approx(4 * other.at_s)


def test_arrivals_are_in_order_within_the_duration_and_about_as_many_as_wanted() -> None:
    times = [ask.at_s for ask in Load(2.0, 500.0).asks(3)]
    assert times == sorted(times)
    assert times[-1] < 500.0
    assert 850 < len(times) < 1150


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_requests_fit_the_models_context(lengths: object) -> None:
    asks = Load(2.0, 100.0, lengths=lengths).asks(1)  # type: ignore[arg-type]
    assert all(0 < ask.num_prompt_tokens + ask.num_answer_tokens < 4096 for ask in asks)


def test_a_burst_is_all_at_once() -> None:
    assert {ask.at_s for ask in burst(8, 10, 10)} == {0.0}
    assert len(burst(8, 10, 10)) == 8


def test_the_pool_is_a_machine_of_the_network_without_a_limited_line() -> None:
    topology = UNEQUAL.topology
    assert POOL in topology.machines
    assert topology.line(POOL).up_bits_per_s is None
    assert topology.line("west-slow").up_bits_per_s == 10e6


def test_regions_are_far_from_each_other_and_near_within() -> None:
    topology = UNEQUAL.topology
    assert topology.link("west-fast", "west-slow") == UNEQUAL.within
    assert topology.link("west-fast", "east-slow").delay_s == topology.link("east-slow", "west-fast").delay_s == 0.04


def test_a_scene_has_memory_for_several_copies_and_no_node_for_the_whole_model() -> None:
    assert sum(node.max_layers for node in UNEQUAL.nodes) >= 3 * 12
    assert max(node.max_layers for node in UNEQUAL.nodes) < 12


def test_scenes_can_be_cut_down_and_given_other_lines() -> None:
    assert [node.name for node in UNEQUAL.only(["east-fast"]).nodes] == ["east-fast"]
    assert {node.line for node in UNEQUAL.with_lines(megabits(10)).nodes} == {megabits(10, 40)}
    assert len({node.pace for node in equal(3, 6).nodes}) == 1
