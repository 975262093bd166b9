"""Parallax's choice of pipelines: how many replicas, and which GPUs form each (arXiv 2509.26182, section 3, phase 1).

GPUs are sorted by capacity. A state is (next GPU, sorted residual layers of the open pipelines, finished pipelines);
its value is the least number of stages. A GPU is skipped, extends an open pipeline, or opens a new one. s*(k) is the
value of k finished pipelines; the number of replicas maximises Z(k) = k^alpha / (T_comp + s*(k) / k * r_RTT).

The number of states is exponential in the worst case: `max_states` bounds it (over all k), and where that is
exceeded the caller falls back to the greedy form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Residuals = tuple[int, ...]
_State = tuple[Residuals, int]
_Step = tuple[_State, int]
"""The state before, and the residual that the GPU extended: -1 skipped, 0 opened a new pipeline."""
_SKIPPED = -1
_OPENED = 0
_CLOSED = -1


class TooManyStatesError(Exception):
    """The dynamic program was given up."""


@dataclass(frozen=True, slots=True)
class ReplicaChoice:
    """`pipelines` are indices into the capacities; `num_stages` is s*(k)."""

    num_replicas: int
    num_stages: int
    pipelines: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Objective:
    """Z(k). `compute_s` is T_comp, the mean compute time of one token in one replica; `hop_s` is r_RTT."""

    alpha: float
    compute_s: float
    hop_s: float

    def __call__(self, num_replicas: int, num_stages: int) -> float:
        time_s = self.compute_s + num_stages / num_replicas * self.hop_s
        return float(num_replicas**self.alpha / max(time_s, 1e-12))


def choose_replicas(
    capacities: Sequence[int], num_layers: int, objective: Objective, max_states: int
) -> ReplicaChoice | None:
    """The k with the greatest Z(k), and its pipelines; None when not even one fits.

    Raises TooManyStatesError."""
    best: tuple[float, ReplicaChoice] | None = None
    budget = max_states
    most = min(len(capacities), sum(min(c, num_layers) for c in capacities) // num_layers)
    for num_replicas in range(1, most + 1):
        choice, num_states = fewest_stages(capacities, num_layers, num_replicas, budget)
        budget -= num_states
        if choice is None:
            break  # if k replicas cannot be packed, more cannot either
        value = objective(num_replicas, choice.num_stages)
        if best is None or value > best[0]:
            best = (value, choice)
    return None if best is None else best[1]


def fewest_stages(
    capacities: Sequence[int], num_layers: int, num_replicas: int, max_states: int
) -> tuple[ReplicaChoice | None, int]:
    """s*(k) and the pipelines that have it (None: k do not fit), and how many states that took.

    Raises TooManyStatesError."""
    order = sorted(range(len(capacities)), key=lambda i: (-capacities[i], i))
    sizes = [min(capacities[i], num_layers) for i in order]
    remaining = list(accumulate(reversed(sizes), initial=0))[::-1]
    layers: list[dict[_State, tuple[int, _Step | None]]] = [{((), 0): (0, None)}]
    num_states = 1
    for at, size in enumerate(sizes):
        layer = _advance(layers[-1], size, num_layers, num_replicas, remaining[at + 1])
        layers.append(layer)
        num_states += len(layer)
        if num_states > max_states:
            raise TooManyStatesError
    final: _State = ((), num_replicas)
    if final not in layers[-1]:
        return None, num_states
    pipelines = _replayed(_backtracked(layers, final), sizes, num_layers)
    named = tuple(tuple(order[at] for at in pipeline) for pipeline in pipelines)
    return ReplicaChoice(num_replicas, layers[-1][final][0], named), num_states


def _advance(
    states: dict[_State, tuple[int, _Step | None]], size: int, num_layers: int, num_replicas: int, remaining: int
) -> dict[_State, tuple[int, _Step | None]]:
    """All states after this GPU, each with its least number of stages and how it came about.

    A state whose open and missing pipelines need more layers than the GPUs after it have is dropped: it cannot end."""
    after: dict[_State, tuple[int, _Step | None]] = {}

    def reach(state: _State, value: int, step: _Step) -> None:
        residuals, finished = state
        needed = sum(residuals) + (num_replicas - finished - len(residuals)) * num_layers
        if needed <= remaining and (state not in after or value < after[state][0]):
            after[state] = (value, step)

    for state, (value, _) in states.items():
        residuals, finished = state
        reach(state, value, (state, _SKIPPED))
        if size < 1:
            continue
        for residual in dict.fromkeys(residuals):
            reach(_extended(residuals, finished, residual, size), value + 1, (state, residual))
        if finished + len(residuals) < num_replicas:
            reach(_opened(residuals, finished, num_layers - size), value + 1, (state, _OPENED))
    return after


def _extended(residuals: Residuals, finished: int, residual: int, size: int) -> _State:
    others = list(residuals)
    others.remove(residual)
    return _opened(tuple(others), finished, residual - size)


def _opened(residuals: Residuals, finished: int, residual: int) -> _State:
    if residual <= 0:
        return residuals, finished + 1
    return tuple(sorted((*residuals, residual))), finished


def _backtracked(layers: Sequence[dict[_State, tuple[int, _Step | None]]], final: _State) -> list[int]:
    """What was done with each GPU, first to last."""
    choices: list[int] = []
    state = final
    for layer in reversed(layers[1:]):
        _, step = layer[state]
        assert step is not None, "only the first state has no step"
        state, choice = step
        choices.append(choice)
    return choices[::-1]


def _replayed(choices: Sequence[int], sizes: Sequence[int], num_layers: int) -> list[list[int]]:
    """The same once more with names: of the open pipelines with the chosen residual any will do."""
    pipelines: list[list[int]] = []
    residuals: list[int] = []
    for at, choice in enumerate(choices):
        if choice == _SKIPPED:
            continue
        if choice == _OPENED:
            pipelines.append([])
            residuals.append(num_layers)
        index = len(pipelines) - 1 if choice == _OPENED else residuals.index(choice)
        pipelines[index].append(at)
        residual = residuals[index] - sizes[at]
        residuals[index] = residual if residual > 0 else _CLOSED
    return pipelines
