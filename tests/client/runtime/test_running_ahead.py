"""A step that begins before the tokens of the one before are here: the same answers, and nothing behind their ends."""

from collections.abc import Callable

import pytest
import torch

from client.ipc import EndSession, Sampled
from client.runtime.errors import DeviceMemoryError
from protocol.values import FinishReason, Sampling
from tests.client.runtime import reference
from tests.client.runtime.chain import DEVICE, Chain, session_id

BuildChain = Callable[..., Chain]
PROMPTS = reference.random_prompts((12, 3, 40, 7, 21))
NUM_NEW = 16
CERTAIN = [
    Sampling(),
    Sampling(0.9, seed=3),
    Sampling(0.8, 0.9, 20, 4, min_p=0.01),
    Sampling(0.7, 1.0, 30, 5, presence_penalty=0.7, frequency_penalty=0.3, repetition_penalty=1.2, answer_from=7),
    Sampling(logit_bias=((5, 4.0), (6, -100.0))),
]
UNCERTAIN = [*CERTAIN[:3], Sampling(0.9, 0.95, seed=6), Sampling(num_logprobs=2)]


def begun(chain: Chain, samplings: list[Sampling], stop_tokens: tuple[int, ...] = ()) -> Chain:
    for number, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        chain.start(number, len(prompt), NUM_NEW, sampling=sampling, history=prompt, stop_tokens=stop_tokens)
        chain.prompt(number, prompt)
    return chain


def answers(chain: Chain) -> list[list[int]]:
    chain.run()
    return [chain.tokens(number) for number in range(len(PROMPTS))]


def num_said(chain: Chain) -> int:
    return len(chain.tail.of(Sampled))


@pytest.mark.parametrize("samplings", [CERTAIN, UNCERTAIN], ids=["certain", "uncertain"])
@pytest.mark.parametrize("max_batch_tokens", [8, 512])
def test_the_tokens_are_those_of_one_step_after_the_other(
    samplings: list[Sampling], max_batch_tokens: int, chain: BuildChain
) -> None:
    plain, ahead = (chain(max_batch_tokens=max_batch_tokens, runs_ahead=is_ahead) for is_ahead in (False, True))
    assert answers(begun(ahead, samplings)) == answers(begun(plain, samplings))
    said = [
        {(m.session_id, m.position): (m.finish_reason, len(m.logprobs)) for m in one.tail.of(Sampled)}
        for one in (ahead, plain)
    ]
    assert said[0] == said[1]
    assert not ahead.engines[0].has_work


def test_a_step_begins_before_the_token_before_it_is_said(chain: BuildChain) -> None:
    one = chain(runs_ahead=True)
    one.start(0, len(PROMPTS[0]), 3)
    one.prompt(0, PROMPTS[0])
    seen = []
    for _ in range(4):
        assert one.engines[0].has_work
        one.step()
        seen.append(num_said(one))
    assert seen == [0, 1, 2, 3]
    assert not one.engines[0].has_work


def test_a_model_in_parts_waits_for_each_token(chain: BuildChain) -> None:
    two = chain(cuts=(0, 2, 6), runs_ahead=True)
    two.start(0, len(PROMPTS[0]), 3)
    two.prompt(0, PROMPTS[0])
    two.step()
    assert num_said(two) == 1


def test_behind_a_stop_token_nothing_is_said(chain: BuildChain) -> None:
    tokens = answers(begun(chain(runs_ahead=False), CERTAIN))
    stop = tokens[0][5]
    one = begun(chain(runs_ahead=True), CERTAIN, stop_tokens=(stop,))
    for found, whole in zip(answers(one), tokens, strict=True):
        end = whole.index(stop) + 1 if stop in whole else NUM_NEW
        assert found == whole[:end]
    assert {m.finish_reason for m in one.tail.of(Sampled) if m.tokens == (stop,)} == {FinishReason.STOP}


def test_who_leaves_while_a_token_is_under_way_is_told_nothing_more(chain: BuildChain) -> None:
    expected = answers(begun(chain(runs_ahead=False), CERTAIN))
    one = begun(chain(runs_ahead=True), CERTAIN)
    for _ in range(4):
        one.step()
    num_before = len(one.tokens(1))
    one.end(1)
    assert answers(one) == [expected[0], expected[1][:num_before], *expected[2:]]
    for number in (0, 2, 3, 4):
        one.end(number)
    one.validate()


def test_a_session_may_begin_anew_while_its_token_is_under_way(chain: BuildChain) -> None:
    [expected] = chain(runs_ahead=False).generate(PROMPTS[:1], NUM_NEW)
    one = chain(runs_ahead=True)
    one.start(0, len(PROMPTS[0]), NUM_NEW)
    one.prompt(0, PROMPTS[0])
    for _ in range(5):
        one.step()
    log = [*PROMPTS[0], *one.tokens(0)]
    num_known = len(one.tokens(0))
    one.resume(0, log, NUM_NEW - num_known, epoch=2, kept=[len(log) - 1])
    one.run()
    anew = [m.tokens[0] for m in one.tail.of(Sampled) if m.epoch == 2]
    assert [*expected[:num_known], *anew] == expected
    one.engines[0].end(EndSession(session_id(0), 2))
    one.validate()


def test_a_row_that_is_no_number_costs_its_session_only(chain: BuildChain, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(begun(chain(runs_ahead=False), CERTAIN))
    one = begun(chain(runs_ahead=True), CERTAIN)
    one.step()
    forward = one.stages[0].forward

    def spoilt(*arguments: object) -> torch.Tensor:
        logits: torch.Tensor = forward(*arguments).clone()  # type: ignore[arg-type]
        logits[2] = torch.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(one.stages[0], "forward", spoilt)
        one.step()
    found = answers(one)
    assert [found[number] for number in (0, 1, 3, 4)] == [expected[number] for number in (0, 1, 3, 4)]
    assert found[2] == expected[2][:1]
    assert one.failures() == [(session_id(2), "non_finite")]


@pytest.mark.expected_logs("a forward over 1 sessions failed")
def test_the_token_before_a_step_that_fails_is_said(chain: BuildChain, monkeypatch: pytest.MonkeyPatch) -> None:
    one = chain(runs_ahead=True)
    one.start(0, 12, NUM_NEW)
    one.prompt(0, PROMPTS[0])
    one.step()

    def full(*_: object) -> torch.Tensor:
        raise DeviceMemoryError

    monkeypatch.setattr(one.stages[0], "forward", full)
    one.step()
    assert (num_said(one), one.failures()) == (1, [(session_id(0), "out_of_memory")])


@pytest.mark.expected_logs("a forward over 1 sessions failed")
def test_what_a_device_says_only_when_it_is_waited_for_costs_the_sessions_of_that_step(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain(runs_ahead=True)
    one.start(0, 12, NUM_NEW)
    one.prompt(0, PROMPTS[0])
    one.step()

    def broken(_: object) -> list[int | None]:
        raise RuntimeError("the device has found something")

    with monkeypatch.context() as patch:
        patch.setattr("client.runtime.sampling.Draws.read", broken)
        one.step()
    assert one.failures() == [(session_id(0), "internal")]
    assert one.generate(PROMPTS[1:2], 4) == chain(runs_ahead=False).generate(PROMPTS[1:2], 4)


@pytest.mark.skipif(DEVICE == "cpu", reason="a processor computes what it is told at once")
def test_an_accelerator_runs_ahead_by_itself(chain: BuildChain) -> None:
    one = chain()
    one.start(0, len(PROMPTS[0]), 3)
    one.prompt(0, PROMPTS[0])
    one.step()
    assert num_said(one) == 0
