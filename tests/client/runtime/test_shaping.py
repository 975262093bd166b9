"""Penalties and biases: as OpenAI and transformers define them, and the same after a move."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from client.runtime.errors import BadTokenError
from client.runtime.shaping import Shaping, is_shaped, shaped
from protocol.values import Sampling

CPU = torch.device("cpu")
LOGITS = torch.tensor([1.0, 3.0, -2.0, -1.0, 2.9, 0.0])
HISTORY = (1, 1, 2, 4, 4, 4)
"""The answer begins at the fourth."""
PENALTIES = st.builds(
    Sampling,
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
    answer_from=st.just(2),
)


def shaping(sampling: Sampling, history: tuple[int, ...] = HISTORY) -> Shaping:
    return Shaping(sampling, history, len(LOGITS), CPU)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), False),
        (Sampling(0.7, 0.9, 20, 4, min_p=0.1, num_logprobs=3), False),
        (Sampling(presence_penalty=-0.5), True),
        (Sampling(frequency_penalty=0.5), True),
        (Sampling(repetition_penalty=1.1), True),
        (Sampling(logit_bias=((3, 1.0),)), True),
    ],
)
def test_only_penalties_and_biases_change_logits(sampling: Sampling, expected: bool) -> None:
    assert is_shaped(sampling) is expected


def test_presence_and_frequency_are_of_the_answer_as_openai_counts() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, answer_from=3)
    changed = LOGITS - shaping(sampling).apply(LOGITS)
    assert changed.tolist() == pytest.approx([0, 0, 0, 0, 0.5 + 3 * 0.25, 0])


def test_repetition_is_of_prompt_and_answer_as_transformers_has_it() -> None:
    processor = RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([HISTORY]), LOGITS[None].clone())[0]
    assert torch.equal(shaping(Sampling(repetition_penalty=1.3, answer_from=3)).apply(LOGITS), expected)


def test_a_bias_is_added_as_it_is() -> None:
    biased = shaping(Sampling(logit_bias=((0, -100.0), (5, 2.5)))).apply(LOGITS)
    assert (biased - LOGITS).tolist() == pytest.approx([-100, 0, 0, 0, 0, 2.5])


@given(PENALTIES, st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_token_at_a_time_is_as_all_of_them_at_once(sampling: Sampling, tokens: list[int]) -> None:
    """A session that moves is opened with its whole log."""
    one = shaping(sampling)
    for token in tokens:
        one.add(token)
    assert torch.equal(one.apply(LOGITS), shaping(sampling, (*HISTORY, *tokens)).apply(LOGITS))


@pytest.mark.parametrize(
    ("sampling", "history"), [(Sampling(repetition_penalty=1.1), (1, 6)), (Sampling(logit_bias=((6, 1.0),)), (1,))]
)
def test_a_token_that_the_model_does_not_have_is_refused(sampling: Sampling, history: tuple[int, ...]) -> None:
    with pytest.raises(BadTokenError):
        shaping(sampling, history)


def test_rows_without_a_wish_stay_as_they_are() -> None:
    logits = torch.stack([LOGITS, LOGITS]).bfloat16()
    assert shaped(logits, [None, None]) is logits
    both = shaped(logits, [None, shaping(Sampling(logit_bias=((0, 9.0),)))])
    assert torch.equal(both[0], logits[0].float())
    assert int(both[1].argmax()) == 0
    assert int(logits[1].argmax()) == 1, "the model's own logits are still needed"
