"""Penalties and biases: as OpenAI and transformers define them, and the same after a move."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from client.runtime.errors import BadTokenError
from client.runtime.shaping import ShapingBook, is_shaped
from protocol.values import Sampling
from tests.client.runtime.chain import DEVICE

LOGITS = torch.tensor([1.0, 3.0, -2.0, -1.0, 2.9, 0.0], device=DEVICE)
HISTORY = (1, 1, 2, 4, 4, 4)
"""The answer begins at the fourth."""
PENALTIES = st.builds(
    Sampling,
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.5, 2),
    answer_from=st.just(2),
)


def new_book() -> ShapingBook:
    return ShapingBook(len(LOGITS), LOGITS.device)


def shaped(sampling: Sampling, history: tuple[int, ...] = HISTORY) -> torch.Tensor:
    book = new_book()
    return book.apply(LOGITS[None], [book.open(sampling, history)])[0]


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
    changed = LOGITS - shaped(Sampling(presence_penalty=0.5, frequency_penalty=0.25, answer_from=3))
    assert changed.tolist() == pytest.approx([0, 0, 0, 0, 0.5 + 3 * 0.25, 0])


def test_repetition_is_of_prompt_and_answer_as_transformers_has_it() -> None:
    processor = RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([HISTORY]), LOGITS[None].cpu())[0]
    found = shaped(Sampling(repetition_penalty=1.3, answer_from=3))
    assert found.tolist() == pytest.approx(expected.tolist())


def test_a_bias_is_added_as_it_is() -> None:
    changed = shaped(Sampling(logit_bias=((0, -100.0), (5, 2.5)))) - LOGITS
    assert changed.tolist() == pytest.approx([-100, 0, 0, 0, 0, 2.5])


@given(st.lists(PENALTIES, min_size=1, max_size=5), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_token_at_a_time_is_as_all_of_them_at_once(samplings: list[Sampling], tokens: list[int]) -> None:
    """A session that moves is opened with its whole log."""
    book = new_book()
    shapings = [book.open(sampling, HISTORY) for sampling in samplings]
    for token in tokens:
        book.add(shapings, torch.tensor([token] * len(shapings), device=DEVICE))
    found = book.apply(LOGITS.expand(len(shapings), -1), shapings)
    for row, sampling in enumerate(samplings):
        assert torch.equal(found[row], shaped(sampling, (*HISTORY, *tokens)))


@pytest.mark.parametrize(
    ("sampling", "history"), [(Sampling(repetition_penalty=1.1), (1, 6)), (Sampling(logit_bias=((6, 1.0),)), (1,))]
)
def test_a_token_that_the_model_does_not_have_is_refused(sampling: Sampling, history: tuple[int, ...]) -> None:
    with pytest.raises(BadTokenError):
        new_book().open(sampling, history)


def test_rows_without_a_wish_stay_as_they_are() -> None:
    book, logits = new_book(), LOGITS.expand(3, -1).bfloat16()
    assert book.apply(logits, [None, None, None]) is logits
    wishes = [None, book.open(Sampling(logit_bias=((0, 9.0),)), ()), book.open(Sampling(presence_penalty=2.0), (1,))]
    found = book.apply(logits, wishes)
    assert torch.equal(found[0], logits[0].float())
    assert found.argmax(dim=1).tolist() == [1, 0, 4]
    assert logits.argmax(dim=1).tolist() == [1, 1, 1], "the model's own logits are still needed"


def test_what_a_session_had_counted_is_not_left_to_the_next_one() -> None:
    book = new_book()
    for _ in range(40):
        shaping = book.open(Sampling(presence_penalty=2.0), HISTORY)
        book.add([shaping, None], torch.tensor([3, 2], device=DEVICE))
        del shaping
    assert book.num_slots == 1
    fresh = book.open(Sampling(presence_penalty=2.0), ())
    assert torch.equal(book.apply(LOGITS[None], [fresh])[0], LOGITS)


def test_there_is_a_slot_for_each_session_that_counts() -> None:
    book = new_book()
    counting = [book.open(Sampling(presence_penalty=2.0), (token,)) for token in range(6)]
    found = book.apply(LOGITS.expand(6, -1), counting)
    assert torch.equal(LOGITS - found, 2.0 * torch.eye(6, device=DEVICE))
