"""Chains of real models that lose stages in mid-answer: the tokens stay, and so does what others have computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.ipc import Sampled, SessionFailed
from protocol.frames import encode_frame
from tests.client.runtime import reference
from tests.client.runtime.chain import Chain, session_id
from tests.client.runtime.recording import PagedOpener
from tests.fakes.tiny_models import RECURRENT

BuildChain = Callable[..., Chain]
CUTS = (0, 2, 3, 5, 6)
NUM_STAGES = 4
NUM_NEW = 14
NUM_BEFORE = 5
"""Tokens before the loss."""
PROMPTS = reference.random_prompts((21, 9, 33))
FAMILIES = ["llama", "qwen2-sliding", "gemma2", "gemma3", "gpt_oss", "deepseek_v3", "llama4", "gpt2", *RECURRENT]
"""Full, sliding, chunked and latent attention, positions that are no rotations, and recurrent states."""
LATE = 1e18
"""A time at which every meter tells what it has counted."""


def begun(chain: Chain, number: int = 0, num_tokens: int = NUM_BEFORE) -> list[int]:
    """Serve until so many tokens are there; the prompt and these."""
    chain.start(number, len(PROMPTS[number]), NUM_NEW)
    chain.prompt(number, PROMPTS[number])
    while len(chain.tokens(number)) < num_tokens:
        chain.step()
    return [*PROMPTS[number], *chain.tokens(number)]


def go_on(chain: Chain, log: list[int], kept: list[int], number: int = 0, epoch: int = 2) -> None:
    left = len(PROMPTS[number]) + NUM_NEW - len(log)
    chain.resume(number, log, left, epoch, kept)


def count_anew(chain: Chain) -> None:
    for engine in chain.engines:
        engine.meter.take(LATE)


def num_computed(chain: Chain) -> list[int]:
    """Rows of each stage since they were counted last."""
    done = [engine.meter.take(LATE) for engine in chain.engines]
    return [0 if work is None else work.num_decode_rows + work.num_prompt_tokens for work in done]


def kept_by(log: list[int], replaced: set[int]) -> list[int]:
    return [0 if stage in replaced else len(log) - 1 for stage in range(NUM_STAGES)]


@pytest.mark.parametrize("replaced", [set(), {0}, {1}, {3}, {1, 2}, {0, 2}, {2, 3}, {0, 1, 2, 3}])
def test_replaced_stages_compute_everything_and_the_others_what_is_new(
    replaced: set[int], chain: BuildChain, checkpoint: Callable[[str], Path]
) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    for stage in replaced:
        four.replace(stage)
    count_anew(four)
    go_on(four, log, kept_by(log, replaced))
    four.run()
    assert four.tokens(0) == reference.generate(checkpoint("llama"), PROMPTS[:1], NUM_NEW)[0]
    num_rows = len(PROMPTS[0]) + NUM_NEW - 1
    assert num_computed(four) == [num_rows if s in replaced else num_rows - len(log) + 1 for s in range(NUM_STAGES)]
    assert not any(engine.num_dropped for engine in four.engines)
    four.end(0, epoch=2)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("replaced", [0, 2, 3])
def test_kept_rows_serve_every_kind_of_attention(
    architecture: str, replaced: int, chain: BuildChain, checkpoint: Callable[[str], Path]
) -> None:
    four = chain(architecture, CUTS)
    log = begun(four)
    four.replace(replaced)
    go_on(four, log, kept_by(log, {replaced}))
    four.run()
    assert four.tokens(0) == reference.generate(checkpoint(architecture), PROMPTS[:1], NUM_NEW)[0]
    four.end(0, epoch=2)


@pytest.mark.parametrize("open_paged", [None, PagedOpener()])
@pytest.mark.parametrize("max_batch_tokens", [4, 512])
def test_others_in_the_batch_are_not_disturbed_when_one_is_opened_again(
    open_paged: PagedOpener | None, max_batch_tokens: int, chain: BuildChain, checkpoint: Callable[[str], Path]
) -> None:
    """One is reopened twice while another decodes and a third is still in its prompt; the stage that was replaced for
    it alone stands for its place on another worker."""
    four = chain(cuts=CUTS, open_paged=open_paged, max_batch_tokens=max_batch_tokens)
    logs = {number: begun(four, number, 2) for number in (0, 1)}
    four.start(2, len(PROMPTS[2]), NUM_NEW)
    four.prompt(2, PROMPTS[2])
    four.step()
    for epoch in (2, 3):
        logs[0] = [*PROMPTS[0], *four.tokens(0)]
        go_on(four, logs[0], [len(logs[0]) - 1] * 2 + [0] + [len(logs[0]) - 1], epoch=epoch)
        while len(four.tokens(0)) < len(logs[0]) - len(PROMPTS[0]) + 3:
            four.step()
    four.run()
    assert [four.tokens(number) for number in range(3)] == reference.generate(checkpoint("llama"), PROMPTS, NUM_NEW)
    assert four.failures() == []
    for number in range(3):
        four.end(number, epoch=3)


def test_rows_that_were_under_way_are_not_computed_in_the_new_epoch(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    four.engines[0].step()  # the next token's row is on its way to the second stage
    count_anew(four)
    go_on(four, log, kept_by(log, set()))
    four.run()
    num_rows = len(PROMPTS[0]) + NUM_NEW - 1
    assert num_computed(four) == [num_rows - len(log) + 1] * NUM_STAGES
    four.end(0, epoch=2)


def test_rows_that_were_sent_beyond_the_kept_ones_are_sent_and_kept_anew(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    for stage in (0, 1):  # the next token's row has left the second stage
        four.engines[stage].step()
        for link, frame in four.mailboxes[stage].frames:
            four.engines[link].receive(encode_frame(frame))
        four.mailboxes[stage].frames.clear()
    for epoch in (2, 3):
        four.replace(2)
        go_on(four, log, kept_by(log, {2}), epoch=epoch)
        while len(four.tokens(0)) < len(log) - len(PROMPTS[0]) + 3:
            four.step()
        log = [*PROMPTS[0], *four.tokens(0)]
    assert four.failures() == []
    four.run()
    assert four.tokens(0) == chain().generate(PROMPTS[:1], NUM_NEW)[0]
    four.end(0, epoch=3)


def test_a_chain_of_one_stage_keeps_its_rows_too(chain: BuildChain, checkpoint: Callable[[str], Path]) -> None:
    one = chain(runs_ahead=False)
    log = begun(one)
    count_anew(one)
    go_on(one, log, [len(log) - 1])
    one.run()
    anew = [m.tokens[0] for m in one.tail.of(Sampled) if m.epoch == 2]  # the older epoch's last one came late
    assert [*log, *anew] == [*PROMPTS[0], *reference.generate(checkpoint("llama"), PROMPTS[:1], NUM_NEW)[0]]
    assert num_computed(one) == [len(PROMPTS[0]) + NUM_NEW - len(log)]
    one.end(0, epoch=2)


@pytest.mark.parametrize("max_rows_sent_again", [1, 7, 512])
def test_kept_rows_leave_in_frames_of_a_bounded_size(
    max_rows_sent_again: int, chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.runtime.engine.ROWS_SENT_AGAIN", max_rows_sent_again)
    two = chain(cuts=(0, 3, 6))
    two.start(0, len(PROMPTS[0]), NUM_NEW)
    two.prompt(0, PROMPTS[0])
    while len(two.tokens(0)) < NUM_BEFORE:
        two.step()
    log = [*PROMPTS[0], *two.tokens(0)]
    two.replace(1)
    kept = len(log) - 1
    two.start(0, len(log), NUM_NEW - NUM_BEFORE, 2, kept=[kept, 0])
    assert two.mailboxes[0].frames == [], "nothing leaves before the others are open"
    two.prompt(0, log[kept:], kept, 2)
    sizes = [frame.num_rows for _, frame in two.mailboxes[0].frames]
    assert sum(sizes) == kept
    assert max(sizes) == min(kept, max_rows_sent_again)
    two.run()
    assert len(two.tokens(0)) == NUM_NEW
    two.end(0, epoch=2)


# ---------------------------------------------------------------- what cannot be kept


def test_a_stage_that_never_had_the_session_says_that_nothing_is_kept(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    four.start(0, 8, 8, epoch=2, kept=[7, 0, 0, 0])
    [failed] = four.mailboxes[0].of(SessionFailed)
    assert (failed.session_id, failed.epoch, failed.code) == (session_id(0), 2, "nothing_kept")
    four.end(0, epoch=2)


def test_more_than_a_stage_has_computed_is_not_kept_and_its_room_is_free_again(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    four.start(0, len(log) + 5, NUM_NEW, epoch=2, kept=[len(log) + 4] * NUM_STAGES)
    assert four.failures() == [(session_id(0), "nothing_kept")] * NUM_STAGES
    assert not any(len(engine.sessions) for engine in four.engines)


def test_without_the_rows_that_the_next_stage_lacks_nothing_is_kept(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    four.engines[1].sessions.sent.forget(session_id(0))  # type: ignore[arg-type]
    four.replace(2)
    go_on(four, log, kept_by(log, {2}))
    assert four.failures() == [(session_id(0), "nothing_kept")]
    four.run()
    go_on(four, log, [0, 0, 0, len(log) - 1], epoch=3)
    four.run()
    assert len(four.tokens(0)) == NUM_NEW
    four.end(0, epoch=3)


@pytest.mark.parametrize("num_ahead", [1, 2])
def test_a_recurrent_state_is_taken_back_by_one_step_and_no_more(
    num_ahead: int, chain: BuildChain, checkpoint: Callable[[str], Path]
) -> None:
    four = chain("qwen3_next", CUTS)
    begun(four)
    while len(four.tokens(0)) < NUM_BEFORE + num_ahead:
        four.step()
    log = [*PROMPTS[0], *four.tokens(0)[:NUM_BEFORE]]
    go_on(four, log, kept_by(log, set()))
    if num_ahead > 1:  # the second and the last stage have full attention only
        assert [mailbox.of(SessionFailed)[0].code for mailbox in four.mailboxes[::2]] == ["nothing_kept"] * 2
        assert len(four.failures()) == 2
        go_on(four, log, kept_by(log, {0, 2}), epoch=3)
    num_said = len(four.tokens(0))
    four.run()
    tokens = four.tokens(0)
    assert (
        tokens[:NUM_BEFORE] + tokens[num_said:] == reference.generate(checkpoint("qwen3_next"), PROMPTS[:1], NUM_NEW)[0]
    )
    four.end(0, epoch=3)


def test_an_end_of_an_older_epoch_does_not_end_what_was_kept(chain: BuildChain) -> None:
    four = chain(cuts=CUTS)
    log = begun(four)
    go_on(four, log, kept_by(log, set()))
    four.end(0, epoch=1)
    four.run()
    assert len(four.tokens(0)) == NUM_NEW
    four.end(0, epoch=2)
