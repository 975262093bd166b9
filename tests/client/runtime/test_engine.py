"""The engine: what it sends for which frames, what it drops, and that one session's failure is its own."""

import array
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from client.ipc import NoMemory, Sampled, SessionFailed, SessionStarted, StartSession
from client.runtime import batch
from client.runtime.batch import StepLayout
from client.runtime.errors import ChannelClosedError, DeviceMemoryError
from protocol.errors import FrameFault
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.values import FinishReason, Sampling, SessionId, StopRule
from tests.client.runtime import reference
from tests.client.runtime.chain import DEVICE, Chain, prompt_frame, session_id

BuildChain = Callable[..., Chain]
PROMPT = reference.random_prompts((12,))[0]


def open_session(chain: Chain, **changes: object) -> None:
    """Give engine 0 a StartSession that fits a chain of one stage, but for `changes`."""
    fields: dict[str, object] = {
        "session_id": session_id(0), "epoch": 1, "stage": 0, "num_stages": 1, "num_prompt_tokens": 4,
        "num_reserved_tokens": 16, "next_link": None, "next_stage": 0, "sampling": Sampling(), "stop": StopRule(16),
    }  # fmt: skip
    chain.engines[0].start(StartSession(**{**fields, **changes}))  # type: ignore[arg-type]


def dropped(chain: Chain) -> dict[FrameFault, int]:
    return dict(chain.engines[0].num_dropped)


def test_a_session_says_that_it_is_open(chain: BuildChain) -> None:
    one = chain()
    one.start(3, 4, 4)
    assert one.tail.messages == [SessionStarted(session_id(3), 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": 1, "num_stages": 2, "next_link": 0},
        {"num_stages": 2, "next_link": 0},
        {"next_link": 5},
        {"sampling": None},
        {"stop": None},
        {"num_prompt_tokens": 0},
    ],
)
def test_a_session_that_does_not_fit_the_layers_is_refused(changes: dict[str, object], chain: BuildChain) -> None:
    one = chain()
    open_session(one, **changes)
    assert one.failures() == [(session_id(0), "wrong_stage")]


def test_a_session_that_needs_more_room_than_there_is_finds_the_pool_full(chain: BuildChain) -> None:
    one = chain()
    free = one.stages[0].cache.num_free_tokens
    open_session(one, num_reserved_tokens=free + 1)
    assert one.failures() == [(session_id(0), "kv_full")]
    assert one.stages[0].cache.num_free_tokens == free


def test_an_older_epoch_is_refused_and_the_newer_one_goes_on(chain: BuildChain) -> None:
    one = chain()
    one.start(0, len(PROMPT), 4, epoch=2)
    one.start(0, len(PROMPT), 4, epoch=1)
    assert one.failures() == [(session_id(0), "stale_epoch")]
    one.prompt(0, PROMPT, epoch=2)
    one.run()
    assert len(one.tokens(0)) == 4


def test_a_session_started_again_at_a_new_epoch_begins_anew(chain: BuildChain) -> None:
    wanted = chain().generate([PROMPT], 6)[0]
    two = chain(cuts=(0, 3, 6))
    two.start(0, len(PROMPT), 6)
    two.prompt(0, PROMPT)
    two.step()
    two.start(0, len(PROMPT), 6, epoch=2)
    two.prompt(0, PROMPT, epoch=2)
    two.run()
    assert [m.tokens[0] for m in two.tail.of(Sampled) if m.epoch == 2] == wanted


def test_a_prompt_may_come_in_several_frames(chain: BuildChain) -> None:
    wanted = chain().generate([PROMPT], 6)[0]
    one = chain()
    one.start(0, len(PROMPT), 6)
    for begin, end in pairwise((0, 5, 6, 12)):
        one.prompt(0, PROMPT[begin:end], position=begin)
        one.step()
    one.run()
    assert one.tokens(0) == wanted


def test_every_token_is_reported_once_with_its_position_and_the_last_with_the_reason(chain: BuildChain) -> None:
    one = chain()
    one.generate([PROMPT], 5)
    sampled = one.tail.of(Sampled)
    assert [message.position for message in sampled] == [12, 13, 14, 15, 16]
    assert [message.finish_reason for message in sampled] == [None] * 4 + [FinishReason.LENGTH]


@pytest.mark.skipif(DEVICE != "cpu", reason="an accelerator computes meanwhile")
def test_a_processor_says_each_token_before_it_begins_the_next_step(chain: BuildChain) -> None:
    one = chain(runs_ahead=False)
    one.start(0, len(PROMPT), 5)
    one.prompt(0, PROMPT)
    for num_steps in range(1, 6):
        one.step()
        assert len(one.tail.of(Sampled)) == num_steps


def test_a_stop_token_is_the_last_one_reported(chain: BuildChain) -> None:
    tokens = chain().generate([PROMPT], 8)[0]
    stop = next(token for token in tokens[2:] if token not in tokens[:2])
    two = chain(cuts=(0, 2, 6))
    assert two.generate([PROMPT], 8, stop_tokens=(stop,))[0] == tokens[: tokens.index(stop) + 1]
    assert two.tail.of(Sampled)[-1].finish_reason is FinishReason.STOP


SHAPED = Sampling(
    0.9, 0.95, 40, 5, min_p=0.01, presence_penalty=0.8, frequency_penalty=0.4, repetition_penalty=1.3,
    logit_bias=((7, -100.0), (8, 3.0)), num_logprobs=2, answer_from=len(PROMPT),
)  # fmt: skip


@pytest.mark.parametrize("cuts", [(0, 6), (0, 2, 6)])
def test_a_session_that_goes_on_elsewhere_has_the_penalties_of_all_its_tokens(
    cuts: tuple[int, ...], chain: BuildChain
) -> None:
    one = chain(cuts=cuts)
    tokens = one.generate([PROMPT], 12, sampling=SHAPED)[0]
    assert 7 not in tokens
    log = [*PROMPT, *tokens[:5]]
    other = chain(cuts=cuts)
    other.start(0, len(log), 7, epoch=2, sampling=SHAPED, history=log)
    other.prompt(0, log, epoch=2)
    other.run()
    assert other.tokens(0) == tokens[5:]


def test_a_repeated_token_costs_its_penalty(chain: BuildChain) -> None:
    plain = chain().generate([PROMPT], 24)[0]
    penalised = chain().generate([PROMPT], 24, sampling=Sampling(frequency_penalty=2.0, presence_penalty=2.0))[0]
    assert len(set(penalised)) > len(set(plain))


def test_greedy_tokens_have_the_logprob_of_the_likeliest(chain: BuildChain) -> None:
    one = chain(cuts=(0, 2, 6))
    tokens = one.generate([PROMPT], 6, sampling=Sampling(num_logprobs=3))[0]
    said = [message.logprobs[0] for message in one.tail.of(Sampled)]
    assert [logprobs.likeliest[0] for logprobs in said] == [
        (token, logprobs.sampled) for token, logprobs in zip(tokens, said, strict=True)
    ]
    assert {len(logprobs.likeliest) for logprobs in said} == {3}


def test_who_asks_for_no_logprobs_has_none_beside_one_who_does(chain: BuildChain) -> None:
    one = chain()
    for number, num_logprobs in enumerate((None, 1)):
        one.start(number, len(PROMPT), 4, sampling=Sampling(num_logprobs=num_logprobs))
        one.prompt(number, PROMPT)
    one.run()
    said = {message.session_id: message.logprobs for message in one.tail.of(Sampled)}
    assert [len(said[session_id(number)]) for number in (0, 1)] == [0, 1]


def test_a_bias_on_a_token_that_the_model_does_not_have_is_refused(chain: BuildChain) -> None:
    one = chain()
    open_session(one, sampling=Sampling(logit_bias=((10**6, 1.0),)))
    assert one.failures() == [(session_id(0), "bad_token")]
    assert one.generate([PROMPT], 4) == chain().generate([PROMPT], 4)


def test_after_the_end_the_tail_sends_nothing_to_the_head(chain: BuildChain) -> None:
    two = chain(cuts=(0, 2, 6))
    two.generate([PROMPT], 3)
    assert not any(engine.has_work for engine in two.engines)
    assert all(not engine.num_dropped for engine in two.engines)


def test_times_add_up_along_the_trip_and_start_again_with_the_next_token(chain: BuildChain) -> None:
    two = chain(cuts=(0, 2, 6))
    two.start(0, len(PROMPT), 3)
    two.prompt(0, PROMPT)
    two.engines[0].step()
    (_, hidden), *_ = two.mailboxes[0].frames
    assert hidden.segments[0].compute_us > 0
    two.engines[1].receive(encode_frame(hidden))
    two.engines[1].step()
    timing = two.tail.of(Sampled)[0].timing
    assert timing.compute_us > hidden.segments[0].compute_us
    assert timing.codec_us >= hidden.segments[0].codec_us
    (link, token), *_ = two.tail.frames
    segment = token.segments[0]
    assert (link, token.kind, token.row_width) == (0, FrameKind.TOKENS, 1)
    assert (segment.position, segment.stage, segment.phase, segment.compute_us) == (12, 0, Phase.DECODE, 0)


def test_all_sessions_of_a_step_share_one_frame_per_neighbour(chain: BuildChain) -> None:
    two = chain(cuts=(0, 2, 6))
    for number in range(5):
        two.start(number, 4, 4)
        two.prompt(number, PROMPT[number : number + 4])
    two.engines[0].step()
    assert [(link, len(frame.segments)) for link, frame in two.mailboxes[0].frames] == [(1, 5)]


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        (prompt_frame(9, PROMPT), FrameFault.UNKNOWN_SESSION),
        (prompt_frame(0, PROMPT, epoch=7), FrameFault.EPOCH),
        (prompt_frame(0, PROMPT, position=3), FrameFault.POSITION),
    ],
)
def test_frames_that_nobody_waits_for_are_dropped_and_counted(
    frame: Frame, fault: FrameFault, chain: BuildChain
) -> None:
    one = chain()
    one.start(0, len(PROMPT), 4)
    one.engines[0].receive(encode_frame(frame))
    assert dropped(one) == {fault: 1}
    assert not one.engines[0].has_work
    assert one.failures() == []


def test_one_wrong_segment_does_not_cost_the_others_of_its_frame(chain: BuildChain) -> None:
    one = chain()
    one.start(1, 2, 2)
    segments = tuple(Segment(SessionId(session_id(n)), 1, 0, 2, 0, 0, Phase.PREFILL) for n in (0, 1, 2))
    payload = array.array("i", [5, 6, 7, 8, 9, 10]).tobytes()
    one.engines[0].receive(encode_frame(Frame(FrameKind.TOKENS, WireDtype.INT32, 1, segments, payload)))
    assert dropped(one) == {FrameFault.UNKNOWN_SESSION: 2}
    one.run()
    assert len(one.tokens(1)) == 2


def test_frames_of_the_wrong_kind_width_or_dtype_are_dropped(chain: BuildChain) -> None:
    two = chain(cuts=(0, 3, 6))
    two.start(0, 1, 2)
    segment = (Segment(SessionId(session_id(0)), 1, 0, 1, 0, 1, Phase.PREFILL),)
    for frame in (
        prompt_frame(0, [5]),
        Frame(FrameKind.HIDDEN, WireDtype.FLOAT32, 32, segment, bytes(32 * 4)),
        Frame(FrameKind.HIDDEN, WireDtype.BFLOAT16, 64, segment, bytes(64 * 2)),
    ):
        two.engines[1].receive(encode_frame(frame))
    assert set(two.engines[1].num_dropped) == {FrameFault.BAD_KIND, FrameFault.BAD_SHAPE, FrameFault.BAD_DTYPE}


def test_bytes_that_are_no_frame_are_dropped(chain: BuildChain) -> None:
    one = chain()
    one.engines[0].receive(b"no frame at all")
    assert dropped(one) == {FrameFault.SHORT_HEADER: 1}


@pytest.mark.parametrize("token", [-1, 384, 2**31 - 1])
def test_a_token_outside_the_vocabulary_ends_the_session(token: int, chain: BuildChain) -> None:
    one = chain()
    one.start(0, 3, 4)
    one.prompt(0, [5, token, 6])
    assert one.failures() == [(session_id(0), "bad_token")]
    assert len(one.engines[0].sessions) == 0


def test_rows_beyond_the_reservation_end_the_session(chain: BuildChain) -> None:
    one = chain()
    open_session(one, num_reserved_tokens=16)
    one.prompt(0, [5] * 17)
    assert one.failures() == [(session_id(0), "kv_full")]


def test_hidden_states_that_are_not_finite_end_their_session_and_no_other(chain: BuildChain) -> None:
    wanted = chain().generate([PROMPT], 4)[0]
    three = chain(cuts=(0, 2, 4, 6))
    for number in (0, 1):
        three.start(number, len(PROMPT), 4)
    three.prompt(0, PROMPT)
    segment = (Segment(SessionId(session_id(1)), 1, 0, 1, 0, 1, Phase.PREFILL),)
    poison = Frame(FrameKind.HIDDEN, WireDtype.FLOAT32, 64, segment, array.array("f", [float("nan")] * 64).tobytes())
    three.engines[1].receive(encode_frame(poison))
    three.run()
    assert three.failures() == [(session_id(1), "non_finite")]
    assert three.tokens(0) == wanted


def test_logits_that_are_not_finite_end_the_session(chain: BuildChain) -> None:
    one = chain()
    head = one.stages[0].cut.model.lm_head.weight
    with torch.no_grad():
        head[7, 3] = float("nan")
    one.generate([PROMPT], 4)
    assert one.failures() == [(session_id(0), "non_finite")]
    assert one.tokens(0) == []


@pytest.mark.expected_logs("a forward over")
@pytest.mark.allowed_logs("no memory for")
@pytest.mark.parametrize(
    ("error", "code"),
    [(torch.OutOfMemoryError("no room"), "out_of_memory"), (ValueError("a bug"), "internal")],
)
def test_a_failed_forward_ends_its_sessions_and_the_next_ones_are_served(
    error: Exception, code: str, chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain()
    for number in (0, 1):
        one.start(number, len(PROMPT), 4)
        one.prompt(number, PROMPT)

    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(one.stages[0], "forward", fail)
        one.run()
    assert one.failures() == [(session_id(0), code), (session_id(1), code)]
    assert len(one.generate([PROMPT], 4)[0]) == 4


def without_memory(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]
) -> list[tuple[int, bool]]:
    """Stage 0's forwards fail for want of memory where `fails` (number of the call, rows) says so; what was tried."""
    stage = chain.stages[0]
    forward, calls = stage.forward, list[tuple[int, bool]]()

    def guarded(layout: StepLayout, *rest: object) -> torch.Tensor:
        has_failed = fails(len(calls), layout.num_rows)
        calls.append((layout.num_rows, has_failed))
        if has_failed:
            raise DeviceMemoryError
        return forward(layout, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "forward", guarded)
    return calls


@pytest.mark.expected_logs("no memory for")
@pytest.mark.parametrize("failing", range(6))
@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6)])
def test_a_forward_without_memory_is_done_in_halves_and_no_answer_changes(
    failing: int, cuts: tuple[int, ...], chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT, PROMPT[:5], PROMPT[3:10]]
    wanted = chain(cuts=cuts, max_batch_tokens=16).generate(prompts, 6)
    short = chain(cuts=cuts, max_batch_tokens=16)
    calls = without_memory(short, monkeypatch, lambda number, _: number == failing)
    assert short.generate(prompts, 6) == wanted
    assert short.failures() == []
    num_rows = calls[failing][0]
    assert [calls[failing + 1][0], calls[failing + 2][0]] == [-(-num_rows // 2), num_rows // 2]


@pytest.mark.expected_logs("no memory for", "a forward over")
def test_what_does_not_fit_in_halves_either_costs_its_sessions_and_no_others(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = chain().generate([PROMPT[:2]], 4)[0]
    one = chain(max_batch_tokens=14)
    without_memory(one, monkeypatch, lambda _, num_rows: num_rows > 5)
    one.start(0, 2, 4)
    one.start(1, len(PROMPT), 4)
    one.prompt(0, PROMPT[:2])
    one.prompt(1, PROMPT)
    one.run()
    assert {session for session, code in one.failures() if code == "out_of_memory"} <= {session_id(0), session_id(1)}
    assert one.failures()
    one.end(0)
    one.end(1)
    assert one.stages[0].cache.num_free_tokens == one.stages[0].cache.num_tokens
    assert one.generate([PROMPT[:2]], 4)[0] == wanted


@pytest.mark.expected_logs("no memory for", "a forward over")
def test_steps_without_memory_are_told_with_the_room_in_use_and_counted_until_one_fits(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain()
    fails = True
    without_memory(one, monkeypatch, lambda *_: fails)
    for number in range(3):
        one.start(number, len(PROMPT), 4)
        one.prompt(number, PROMPT)
        one.run()
    used = one.stages[0].cache.num_tokens - one.stages[0].cache.num_free_tokens
    assert used == 0, "what failed has given its room back"
    told = one.mailboxes[0].of(NoMemory)
    assert [message.num_in_a_row for message in told] == [1, 2, 3]
    assert {message.num_used_tokens for message in told} == {16}
    fails = False
    one.generate([PROMPT], 4)
    fails = True
    one.start(7, len(PROMPT), 4)
    one.prompt(7, PROMPT)
    one.run()
    assert one.mailboxes[0].of(NoMemory)[3:] == [NoMemory(16, 1)]


@pytest.mark.expected_logs("no memory for")
def test_a_step_that_fits_in_halves_is_no_shortage(chain: BuildChain, monkeypatch: pytest.MonkeyPatch) -> None:
    one = chain()
    without_memory(one, monkeypatch, lambda number, _: number == 0)
    one.generate([PROMPT], 4)
    assert one.mailboxes[0].of(NoMemory) == []


@pytest.mark.expected_logs("no memory for")
def test_after_many_steps_that_fit_larger_ones_are_tried_again(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "STEPS_BEFORE_MORE", 4)
    one = chain(max_batch_tokens=40)
    calls = without_memory(one, monkeypatch, lambda number, _: number == 0)
    prompt = [*PROMPT, *PROMPT, *PROMPT, *PROMPT]
    one.generate([prompt], 12)
    one.end(0)
    one.generate([prompt], 2)
    assert [rows for rows, _ in calls[:5]] == [40, 20, 20, 8, 1]
    assert (40, False) in calls[5:]


def test_a_closed_channel_is_not_mistaken_for_a_failed_forward(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain()
    one.start(0, len(PROMPT), 4)
    one.prompt(0, PROMPT)

    def closed(message: object) -> None:
        raise ChannelClosedError

    monkeypatch.setattr(one.tail, "send_message", closed)
    with pytest.raises(ChannelClosedError):
        one.run()


def test_replacing_the_slice_ends_every_session(chain: BuildChain) -> None:
    one = chain()
    for number in (0, 1):
        one.start(number, 4, 4)
    one.engines[0].close()
    assert [message.code for message in one.tail.of(SessionFailed)] == ["slice_replaced"] * 2


def test_an_ended_session_frees_its_room_and_its_late_frames_are_dropped(chain: BuildChain) -> None:
    two = chain(cuts=(0, 3, 6))
    two.start(0, len(PROMPT), 8)
    two.prompt(0, PROMPT)
    two.step()
    two.end(0)
    two.prompt(0, [5], position=12)
    assert two.engines[0].num_dropped[FrameFault.UNKNOWN_SESSION] == 1
    assert all(stage.cache.num_free_tokens == stage.cache.num_tokens for stage in two.stages)


def test_of_a_prompt_that_is_given_up_no_further_chunk_is_computed(
    chain: BuildChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = chain(max_batch_tokens=4)
    calls = without_memory(one, monkeypatch, lambda number, rows: False)
    one.start(0, len(PROMPT), 4)
    one.prompt(0, PROMPT)
    one.step()
    one.end(0)
    one.run()
    assert [rows for rows, _ in calls] == [4]
    assert one.stages[0].cache.num_free_tokens == one.stages[0].cache.num_tokens


def test_many_sessions_coming_and_going_leak_nothing(chain: BuildChain) -> None:
    two = chain(cuts=(0, 3, 6), max_batch_tokens=24)
    prompts = reference.random_prompts(range(1, 20), seed=2)
    for number, prompt in enumerate(prompts):
        two.start(number, len(prompt), 3)
        two.prompt(number, prompt)
        two.step()
        if number >= 6:
            two.end(number - 6)
    two.run()
    for number in range(len(prompts)):
        two.end(number)
    assert [len(stage.cache.layers) for stage in two.stages] == [3, 3]
    assert all(stage.cache.num_free_tokens == stage.cache.num_tokens for stage in two.stages)


def test_forwards_and_what_they_carry_are_counted(chain: BuildChain) -> None:
    two = chain(cuts=(0, 3, 6))
    two.generate([PROMPT, PROMPT[:5]], 4)
    for engine in two.engines:
        done = engine.meter.take(math.inf)
        assert done is not None
        assert (done.num_prompt_tokens, done.num_decode_rows) == (len(PROMPT) + 5, 2 * 3)
        assert 4 <= done.num_steps <= 8
        assert done.compute_s > 0


@pytest.mark.expected_logs("a forward over 1 sessions failed", "no memory for")
def test_a_failed_forward_is_no_work(chain: BuildChain, monkeypatch: pytest.MonkeyPatch) -> None:
    one = chain(runs_ahead=False)
    one.start(0, len(PROMPT), 4)
    one.prompt(0, PROMPT)
    monkeypatch.setattr(one.stages[0], "forward", lambda *_: torch.full((1, 384), torch.nan))
    one.engines[0].step()
    assert one.failures() == [(session_id(0), "non_finite")]

    def broken(*_: object) -> None:
        raise MemoryError

    one.start(1, len(PROMPT), 4)
    one.prompt(1, PROMPT)
    monkeypatch.setattr(one.stages[0], "forward", broken)
    before = one.engines[0].meter.take(math.inf)
    one.engines[0].step()
    assert before is not None
    assert one.engines[0].meter.take(math.inf) is None
