"""Log-probabilities are the model's own, of the token and of the likeliest ones."""

import math

import pytest
import torch

from client.runtime.logprobs import logprobs_of
from protocol.values import UNKNOWN_LOGPROB
from tests.client.runtime.chain import DEVICE

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0], [5.0, 1.0, -torch.inf, 0.0]], device=DEVICE)


def test_they_are_the_logarithms_of_the_softmax() -> None:
    one, none, other = logprobs_of(LOGITS, [2, 1, 0], [2, None, 0])
    expected = LOGITS[0].log_softmax(0).tolist()
    assert none is None
    assert one is not None and other is not None
    assert one.sampled == pytest.approx(expected[2])
    assert [token for token, _ in one.likeliest] == [1, 2]
    assert [logprob for _, logprob in one.likeliest] == pytest.approx([expected[1], expected[2]])
    assert other.likeliest == ()


def test_there_are_no_more_than_the_vocabulary_has() -> None:
    [found] = logprobs_of(LOGITS[1:2], [3], [20])
    assert found is not None
    assert [logprob for _, logprob in found.likeliest] == pytest.approx([math.log(0.25)] * 4)


def test_what_the_model_rules_out_has_the_least_number_that_is_said() -> None:
    [found] = logprobs_of(LOGITS[2:], [2], [4])
    assert found is not None
    assert (found.sampled, found.likeliest[-1]) == (UNKNOWN_LOGPROB, (2, UNKNOWN_LOGPROB))


def test_a_certain_token_has_none_above_zero() -> None:
    [found] = logprobs_of(torch.tensor([[100.0, 0.0]], device=DEVICE), [0], [1])
    assert found is not None
    assert found.sampled == 0.0


def test_where_there_is_no_token_there_is_none() -> None:
    assert logprobs_of(LOGITS, [None, 1, 0], [3, None, None]) == [None, None, None]
