"""Recurrent states: a step counts once it is over, the latest can be taken back, and no session goes without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.runtime.batch import StepLayout, lay_out
from client.runtime.device import Device
from client.runtime.errors import DeviceMemoryError, KvFullError
from client.runtime.kv_cache import KvTable, LayerShape
from client.runtime.mixers import StateShape
from client.runtime.stage import Stage
from client.runtime.state_pool import StatefulCache, StatefulTable
from protocol.values import MIN_STATEFUL_TOKENS
from tests.client.runtime import reference
from tests.client.runtime.chain import Chain, load_stage
from tests.client.runtime.recording import PagedOpener

STATE = StateShape(0, torch.empty(1, 8, 4, device="meta"), torch.empty(1, 2, 16, 16, device="meta"))
STATE_BYTES = 4 * (8 * 4 + 2 * 16 * 16)
KV = LayerShape(1, 2, 16, 16)
KV_BYTES = 4 * 2 * 32
SESSION_BYTES = MIN_STATEFUL_TOKENS * (KV_BYTES + -(-2 * STATE_BYTES // MIN_STATEFUL_TOKENS))
Checkpoints = Callable[[str], Path]


def cache_of(max_bytes: int, device: Device) -> StatefulCache:
    return StatefulCache((KV,), (STATE,), max_bytes, torch.float32, device)


def table_of(length: int = 0) -> StatefulTable:
    table = StatefulTable(list(range(8)), 3)
    if length:
        table.begin_step()
        table.advance(length)
    return table


# ---------------------------------------------------------------- a session's table


def test_a_step_writes_where_it_does_not_read() -> None:
    table = table_of(5)
    assert {table.current_place, table.begin_step()} == {6, 7}


def test_a_step_counts_only_once_the_table_is_advanced() -> None:
    table = table_of(5)
    before = table.current_place
    written = table.begin_step()
    assert table.current_place == before
    table.advance(1)
    assert (table.current_place, table.length) == (written, 6)


def test_what_it_has_and_what_it_had_before_the_latest_step_are_kept() -> None:
    table = table_of(5)
    table.begin_step()
    table.advance(3)
    assert [length for length in range(12) if table.keeps(length)] == [5, 8]


def test_taking_back_the_latest_step_brings_the_states_before_it_back_once() -> None:
    table = table_of(5)
    before = table.current_place
    table.begin_step()
    table.advance(3)
    table.truncate(5)
    assert (table.current_place, table.length) == (before, 5)
    assert [length for length in range(12) if table.keeps(length)] == [5]


def test_a_step_that_has_begun_leaves_nothing_of_what_was_before_the_latest_one() -> None:
    table = table_of(5)
    table.begin_step()
    table.advance(1)
    table.begin_step()
    assert [length for length in range(12) if table.keeps(length)] == [6]


def test_truncating_to_what_it_has_changes_nothing() -> None:
    table = table_of(5)
    place = table.current_place
    table.truncate(5)
    assert (table.current_place, table.length) == (place, 5)


def test_nothing_else_can_be_truncated_to() -> None:
    with pytest.raises(AssertionError, match="cannot be cut back"):
        table_of(5).truncate(4)


def test_without_states_every_shorter_length_is_kept() -> None:
    table = KvTable(list(range(8)))
    table.advance(5)
    assert [length for length in range(12) if table.keeps(length)] == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------- room


@pytest.mark.parametrize("num_sessions", [1, 2, 5])
def test_there_are_states_for_as_many_sessions_as_there_can_be(num_sessions: int, device: Device) -> None:
    cache = cache_of(num_sessions * SESSION_BYTES + 1000, device)
    tables = [cache.open(1) for _ in range(num_sessions)]
    cache.validate()
    with pytest.raises(KvFullError):
        cache.open(1)
    cache.validate()
    cache.close(tables[0])
    cache.open(1)
    cache.validate()


def test_a_long_session_takes_the_room_of_several(device: Device) -> None:
    cache = cache_of(4 * SESSION_BYTES, device)
    assert cache.open(3 * MIN_STATEFUL_TOKENS).capacity == 3 * MIN_STATEFUL_TOKENS
    cache.open(1)
    with pytest.raises(KvFullError):
        cache.open(1)
    cache.validate()


def test_states_and_keys_together_stay_within_the_bytes_given(device: Device) -> None:
    num_bytes = 3 * SESSION_BYTES
    cache = cache_of(num_bytes, device)
    keys = cache.num_tokens * KV_BYTES
    states = 2 * STATE_BYTES * (cache.num_tokens // MIN_STATEFUL_TOKENS)
    assert num_bytes * 0.99 < keys + states <= num_bytes


def test_layers_without_keys_have_room_by_their_states_alone(device: Device) -> None:
    cache = StatefulCache((), (STATE,), 10 * 2 * STATE_BYTES + MIN_STATEFUL_TOKENS * 16, torch.float32, device)
    tables = [cache.open(4) for _ in range(cache.num_tokens // MIN_STATEFUL_TOKENS)]
    assert len(tables) >= 10
    cache.validate()


def test_memory_for_less_than_one_session_is_refused(device: Device) -> None:
    with pytest.raises(DeviceMemoryError):
        cache_of(SESSION_BYTES - 16 * KV_BYTES, device)


# ---------------------------------------------------------------- a step


def stage_of(checkpoint: Checkpoints) -> Stage:
    return load_stage(checkpoint("qwen3_next"), 0, 6, 2**24)


def step(stage: Stage, table: KvTable, tokens: list[int], *, counts: bool = True) -> Tensor:
    layout = lay_out([(table, len(tokens))])
    logits = stage.forward(layout, torch.tensor(tokens), [len(tokens) - 1]).clone()
    if counts:
        table.advance(len(tokens))
    return logits


def test_a_forward_that_is_repeated_gives_the_same(checkpoint: Checkpoints) -> None:
    stage = stage_of(checkpoint)
    table = stage.cache.open(64)
    for tokens in ([5, 9, 11, 40], [7], [8, 19, 3], [4]):
        first = step(stage, table, tokens, counts=False)
        assert torch.equal(step(stage, table, tokens), first)


@pytest.mark.expected_logs("no memory for")
@pytest.mark.parametrize("failing", range(5))
def test_a_forward_that_fails_after_it_has_written_is_repeated_in_halves_and_no_answer_changes(
    failing: int, chain: Callable[..., Chain], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = reference.random_prompts((12, 5, 7))
    wanted = chain("qwen3_next", max_batch_tokens=16).generate(prompts, 6)
    short = chain("qwen3_next", max_batch_tokens=16)
    forward, calls = short.stages[0].forward, list[int]()

    def without_memory(layout: StepLayout, inputs: Tensor, logit_rows: list[int]) -> Tensor:
        calls.append(layout.num_rows)
        output = forward(layout, inputs, logit_rows)
        if len(calls) == failing + 1:
            raise DeviceMemoryError
        return output

    monkeypatch.setattr(short.stages[0], "forward", without_memory)
    assert short.generate(prompts, 6) == wanted
    assert short.failures() == []
    assert calls[failing + 1] + calls[failing + 2] == calls[failing]


def test_a_step_that_is_taken_back_leaves_no_trace(checkpoint: Checkpoints) -> None:
    stage = stage_of(checkpoint)
    table, other = stage.cache.open(64), stage.cache.open(64)
    for each in (table, other):
        step(stage, each, [5, 9, 11, 40])
    step(stage, other, [99, 98])
    other.truncate(4)
    assert torch.equal(step(stage, other, [7]), step(stage, table, [7]))


def test_a_new_session_does_not_see_who_had_its_place_before(checkpoint: Checkpoints) -> None:
    stage = stage_of(checkpoint)
    clean = step(stage, stage.cache.open(64), [7, 21, 3])
    used = stage.cache.open(64)
    step(stage, used, [5, 9, 11, 40])
    step(stage, used, [12])
    stage.cache.close(used)
    again = stage.cache.open(64)
    assert isinstance(again, StatefulTable) and isinstance(used, StatefulTable) and again.state == used.state
    assert torch.equal(step(stage, again, [7, 21, 3]), clean)


def test_layers_with_states_are_not_captured_and_others_of_the_same_model_are(checkpoint: Checkpoints) -> None:
    for start, num_recorded in ((0, 0), (2, 1)):
        opener = PagedOpener()
        stage = load_stage(checkpoint("qwen3_next"), start, start + 1, 2**24, opener)
        table = stage.cache.open(64)
        table.advance(0)
        rows = torch.tensor([5]) if stage.is_first else torch.zeros(1, stage.hidden_size)
        stage.forward(lay_out([(table, 1)]), rows, [])
        assert opener.recorder.num_recorded == num_recorded
