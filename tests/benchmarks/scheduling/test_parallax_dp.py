from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scheduling.baselines.parallax_dp import (
    Objective,
    TooManyStatesError,
    choose_replicas,
    fewest_stages,
)

MANY = 10**6


def brute_force(capacities: list[int], num_layers: int, num_replicas: int) -> int | None:
    """The least number of GPUs that form so many pipelines: every GPU in one of them or in none."""
    best = None
    for groups in itertools.product(range(num_replicas + 1), repeat=len(capacities)):
        sums = [0] * (num_replicas + 1)
        for group, capacity in zip(groups, capacities, strict=True):
            sums[group] += capacity
        if all(total >= num_layers for total in sums[1:]):
            used = sum(1 for group in groups if group)
            best = used if best is None else min(best, used)
    return best


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 10), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_fewest_stages_are_those_of_brute_force(capacities: list[int], num_layers: int, num_replicas: int) -> None:
    choice, _ = fewest_stages(capacities, num_layers, num_replicas, MANY)
    expected = brute_force(capacities, num_layers, num_replicas)
    assert (choice.num_stages if choice else None) == expected
    if choice:
        members = [i for pipeline in choice.pipelines for i in pipeline]
        assert len(members) == len(set(members)) == choice.num_stages
        assert len(choice.pipelines) == num_replicas
        assert all(sum(min(capacities[i], num_layers) for i in p) >= num_layers for p in choice.pipelines)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 10),
    st.floats(0, 3),
    st.floats(0.001, 10),
    st.floats(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_the_number_of_replicas_maximises_z(
    capacities: list[int], num_layers: int, alpha: float, compute_s: float, hop_s: float
) -> None:
    objective = Objective(alpha, compute_s, hop_s)
    choice = choose_replicas(capacities, num_layers, objective, MANY)
    stages = {k: brute_force(capacities, num_layers, k) for k in range(1, min(3, len(capacities)) + 1)}
    values = {k: objective(k, s) for k, s in stages.items() if s is not None}
    if not values:
        assert choice is None
        return
    assert choice is not None
    assert objective(choice.num_replicas, choice.num_stages) >= max(values.values()) - 1e-12


def test_z_is_the_papers() -> None:
    assert Objective(2.0, 0.5, 0.1)(3, 12) == pytest.approx(3**2 / (0.5 + 12 / 3 * 0.1))


def test_more_replicas_are_not_worth_any_number_of_hops() -> None:
    capacities = [10, 4, 3, 3]
    assert choose_replicas(capacities, 10, Objective(1.0, 1.0, 0.01), MANY).num_replicas == 2  # type: ignore[union-attr]
    assert choose_replicas(capacities, 10, Objective(0.0, 1.0, 0.01), MANY).num_replicas == 1  # type: ignore[union-attr]


def test_too_many_states_are_given_up() -> None:
    with pytest.raises(TooManyStatesError):
        choose_replicas(list(range(3, 40)), 50, Objective(1.0, 1.0, 0.1), 200)
