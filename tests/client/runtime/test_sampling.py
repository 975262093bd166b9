"""Sampling: deterministic in (seed, position), blind to the rest of the batch, and true to the distribution."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from client.runtime.sampling import finish_reason, sample, uniform
from protocol.values import FinishReason, Sampling, StopRule
from tests.client.runtime.chain import DEVICE

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.9, 0.0], device=DEVICE)


def random_logits(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def draws(sampling: Sampling, logits: torch.Tensor = LOGITS, number: int = 4000) -> Counter[int | None]:
    rows = logits.expand(number, -1)
    return Counter(sample(rows, [(sampling, position) for position in range(number)]))


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert sample(LOGITS[None], [(Sampling(), 7)]) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax_of_the_scaled_logits(temperature: float) -> None:
    counts = draws(Sampling(temperature=temperature, seed=3))
    for token, probability in enumerate((LOGITS / temperature).softmax(0).tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_k_never_draws_another_token() -> None:
    assert set(draws(Sampling(temperature=2.0, top_k=2))) == {1, 4}


def test_top_k_of_one_is_greedy() -> None:
    assert set(draws(Sampling(temperature=2.0, top_k=1), number=200)) == {1}


def test_a_top_k_beyond_the_vocabulary_is_off() -> None:
    assert draws(Sampling(temperature=1.0, top_k=100)) == draws(Sampling(temperature=1.0))


def test_top_p_keeps_the_smallest_set_that_holds_it() -> None:
    probabilities = LOGITS.softmax(0)
    assert float(probabilities[[1, 4]].sum()) < 0.8 < float(probabilities[[1, 4, 2]].sum())
    assert set(draws(Sampling(temperature=1.0, top_p=0.8))) == {1, 2, 4}


def test_a_tiny_top_p_leaves_the_likeliest_token() -> None:
    assert set(draws(Sampling(temperature=2.0, top_p=1e-9), number=200)) == {1}


def test_top_p_is_the_same_over_a_vocabulary_too_long_to_look_at_whole() -> None:
    logits = torch.zeros(5000, device=DEVICE)
    tokens = draws(Sampling(temperature=1.0, top_p=0.5), logits, number=300)
    assert max(token for token in tokens if token is not None) >= 2500  # equal weights: all of them are kept


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=9)
    logits = random_logits(8, 50, seed=0)
    together = sample(logits, [(sampling, position) for position in range(8)])
    assert together == [sample(logits[row : row + 1], [(sampling, row)])[0] for row in range(8)]


def test_min_p_is_a_share_of_the_likeliest_ones_probability() -> None:
    """exp(2.9 - 3) and exp(2 - 3) are above 0.3, exp(1 - 3) is not."""
    assert set(draws(Sampling(temperature=1.0, min_p=0.3))) == {1, 2, 4}


@given(
    st.integers(0, 2**32), st.floats(0.1, 2.0), st.sampled_from([0, 1, 3, 17, 400, 700]), st.floats(0.01, 1.0),
    st.sampled_from([0.0, 0.02, 0.5]),
)  # fmt: skip
def test_what_is_drawn_is_what_transformers_leaves(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(4, 1000, seed) * 3
    tokens = sample(logits, [(Sampling(temperature, top_p, top_k, seed, min_p), position) for position in range(4)])
    near = [min(1.0, top_p + shift) for shift in (0.0, 1e-5, -1e-5)]  # where a sum just reaches it, rounding decides
    allowed = [warped(logits.cpu() / temperature, top_k, share, min_p) for share in near]
    for row, token in enumerate(tokens):
        assert token is not None
        assert any(is_drawn(weights[row], token, uniform(seed, row)) for weights in allowed)


def warped(scaled: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities [rows, vocabulary] by transformers."""
    kept = scaled.double()
    for warper in [*([TopKLogitsWarper(top_k)] if top_k else []), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]:
        kept = warper(torch.empty(len(kept), 0), kept)
    return kept.softmax(dim=-1)


def is_drawn(weights: torch.Tensor, token: int, number: float) -> bool:
    above = float(weights[: token + 1].sum())
    return above - float(weights[token]) - 1e-5 <= number < above + 1e-5


def test_rows_with_limits_without_them_and_greedy_ones_do_not_change_each_other() -> None:
    kinds = [
        Sampling(), Sampling(1.0, seed=4), Sampling(0.7, 0.8, 20, 4), Sampling(1.5, 0.999, 0, 4),
        Sampling(1.0, min_p=0.2), Sampling(0.9, top_k=600, seed=1),
    ]  # fmt: skip
    logits = random_logits(48, 2000, seed=1)
    choices = [(kinds[row % len(kinds)], row) for row in range(48)]
    assert sample(logits, choices) == [sample(logits[row : row + 1], choices[row : row + 1])[0] for row in range(48)]


@pytest.mark.parametrize("num_likeliest", [1, 4, 50])
def test_it_does_not_matter_how_many_of_the_likeliest_are_looked_at_first(
    num_likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(30, 50, seed=2)
    choices = [(Sampling(1.0, 0.9, 12 * (row % 2), seed=3), row) for row in range(30)]
    expected = sample(logits, choices)
    monkeypatch.setattr("client.runtime.sampling.NUM_LIKELIEST", num_likeliest)
    assert sample(logits, choices) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 0.9, 3), Sampling(1.0, 0.9)])
def test_logits_that_are_not_finite_give_no_token(value: float, sampling: Sampling) -> None:
    bad = LOGITS.clone()
    bad[2] = value
    choice = (sampling, 3)
    tokens = sample(torch.stack([bad, LOGITS]), [choice, choice])
    assert tokens[0] is None
    assert tokens[1] is not None


def test_a_token_the_model_rules_out_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf], device=DEVICE)
    assert set(draws(Sampling(temperature=1.0), logits, number=300)) == {1, 3}


def test_the_random_number_of_a_position_is_fixed_for_good() -> None:
    """A change would change the answers of sessions that move from an old node to a new one."""
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1)] == PINNED


PINNED = [0.7724765796593968, 0.5154231992707856, 0.7235816656856942]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32))
def test_random_numbers_lie_in_the_unit_interval(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


def test_random_numbers_of_neighbouring_positions_and_seeds_are_spread_evenly() -> None:
    numbers = torch.tensor([[uniform(seed, position) for position in range(100)] for seed in range(100)])
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.histc(numbers.flatten(), 10, 0, 1).min() > 900


@given(st.integers(0, 2**32), st.floats(0.05, 2.0), st.floats(0.05, 1.0), st.integers(0, 12))
def test_a_draw_is_a_token_of_the_vocabulary(seed: int, temperature: float, top_p: float, top_k: int) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    token = sample(LOGITS[None], [(sampling, 0)])[0]
    assert token is not None and 0 <= token < len(LOGITS)
    assert token == sample(LOGITS[None], [(sampling, 0)])[0]


@pytest.mark.parametrize(
    ("token", "position", "reason"),
    [(5, 3, None), (9, 3, FinishReason.STOP), (5, 7, FinishReason.LENGTH), (9, 7, FinishReason.STOP)],
)
def test_a_generation_ends_at_a_stop_token_or_at_its_length(
    token: int, position: int, reason: FinishReason | None
) -> None:
    assert finish_reason(token, position, StopRule(8, (9, 10))) is reason
