"""The toy model: every row counts, and the division into stages does not."""

from __future__ import annotations

import itertools
import random

import pytest

from coordinator.sessions import Order
from protocol.values import FinishReason, LayerRange, Sampling
from tests.fakes import pool_facts as facts
from tests.simulation.model import (
    NAN_ROW,
    NUM_LAYERS,
    STOP_TOKENS,
    Layers,
    row_of_token,
    token_of_row,
    undisturbed,
)
from tests.simulation.users import some_order

TOKENS = (5, 6, 7, 8)


def last_row(*cuts: int, tokens: tuple[int, ...] = TOKENS) -> bytes:
    """What comes out at the end of stages that are cut there."""
    edges = (0, *cuts, NUM_LAYERS)
    stages = [Layers(LayerRange(start, stop)) for start, stop in itertools.pairwise(edges)]
    row = b""
    for token in tokens:
        row = row_of_token(token)
        for stage in stages:
            row = stage.forward(row)
    return row


def test_the_division_into_stages_makes_no_difference() -> None:
    assert last_row() == last_row(2) == last_row(1, 4) == last_row(1, 2, 3, 4, 5)


@pytest.mark.parametrize("tokens", [(5, 6, 8), (5, 6, 7, 7, 8), (5, 7, 6, 8), (9, 6, 7, 8), (5, 6, 7, 8, 8)], ids=str)
def test_a_lost_repeated_swapped_or_changed_token_makes_one(tokens: tuple[int, ...]) -> None:
    assert last_row(2) != last_row(2, tokens=tokens)


@pytest.mark.parametrize("stale", [0, 1, 2])
def test_an_old_row_in_one_stage_makes_one(stale: int) -> None:
    stage = Layers(LayerRange(0, 2))
    for place, token in enumerate(TOKENS):
        stage.forward(row_of_token(99 if place == stale else token))
    other = Layers(LayerRange(0, 2))
    for token in TOKENS:
        other.forward(row_of_token(token))
    assert stage.forward(row_of_token(1)) != other.forward(row_of_token(1))


def test_truncated_layers_go_on_as_if_nothing_had_followed() -> None:
    layers, fresh = Layers(LayerRange(0, 3)), Layers(LayerRange(0, 3))
    for token in (5, 6, 99, 98):
        layers.forward(row_of_token(token))
    layers.truncate(2)
    for token in (5, 6):
        fresh.forward(row_of_token(token))
    assert layers.length == 2
    assert layers.forward(row_of_token(7)) == fresh.forward(row_of_token(7))


def test_what_is_no_number_stays_none() -> None:
    layers = Layers(LayerRange(0, 3))
    assert layers.forward(NAN_ROW) == NAN_ROW
    assert layers.length == 1


def test_sampling_depends_on_seed_and_position_and_greedy_on_neither() -> None:
    row, greedy = last_row(), Sampling()
    assert token_of_row(row, greedy, 4) == token_of_row(row, greedy, 5) == token_of_row(row, Sampling(seed=3), 4)
    drawn = {token_of_row(row, Sampling(1.0, seed=seed), at) for seed in range(4) for at in range(4)}
    assert len(drawn) > 10


def test_an_undisturbed_answer_ends_at_a_stop_token_or_its_length() -> None:
    rng = random.Random(1)
    answers = [(order, undisturbed(order)) for order in (some_order(n, facts.DIGEST, rng) for n in range(100))]
    reasons = {answer.finish_reason for _, answer in answers}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    for order, answer in answers:
        stopped = answer.tokens[-1] in STOP_TOKENS
        assert stopped == (answer.finish_reason is FinishReason.STOP)
        assert stopped or len(answer.tokens) == order.max_new_tokens
        assert not set(answer.tokens[:-1]) & set(STOP_TOKENS)


def test_an_answer_begins_like_the_longer_one() -> None:
    short = Order(facts.session_id(1), facts.DIGEST, TOKENS, 3, Sampling(), ())
    long = Order(facts.session_id(1), facts.DIGEST, TOKENS, 6, Sampling(), ())
    assert undisturbed(long).tokens[:3] == undisturbed(short).tokens
