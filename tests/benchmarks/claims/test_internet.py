from __future__ import annotations

import pytest

from benchmarks.claims.internet import as_ended, door_of, ready_model
from benchmarks.claims.scene import Ask
from benchmarks.claims.users import Answer
from protocol.join_link import JoinLink


def test_a_pool_with_a_public_certificate_is_trusted_as_any_site_is() -> None:
    door = door_of(JoinLink("https://pool.example.org"), "model", "key")
    assert (door.trust, door.certificate_name, door.key) == (None, "", "key")
    assert door.extensions == {}


def test_an_answer_that_the_model_ended_is_whole() -> None:
    answer = as_ended(Answer(Ask(0.0, 10, 8), [1.0, 2.0]))
    assert answer.is_whole
    assert answer.ask.num_answer_tokens == 2


@pytest.mark.parametrize("answer", [Answer(Ask(0.0, 10, 8), [1.0], error="no_capacity"), Answer(Ask(0.0, 10, 8))])
def test_an_answer_that_broke_or_never_came_is_not(answer: Answer) -> None:
    assert not as_ended(answer).is_whole


def test_the_first_ready_model_is_asked_and_none_is_said() -> None:
    models = [{"id": "a", "state": "loading"}, {"id": "b", "state": "ready"}]
    assert ready_model({"models": models}) == "b"
    with pytest.raises(SystemExit):
        ready_model({"models": models[:1]})
