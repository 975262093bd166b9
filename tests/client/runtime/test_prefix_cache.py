"""Named blocks: who finds them, who may have them back, and that answers are the same with them and without."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from client.runtime.device import Device
from client.runtime.errors import KvFullError
from client.runtime.kv_cache import BLOCK_TOKENS, KvCache, KvTable, LayerShape
from client.runtime.prefix_cache import PrefixCache
from tests.client.runtime import reference
from tests.client.runtime.chain import Chain
from tests.client.runtime.recording import PagedOpener

BuildChain = Callable[..., Chain]
NAMES = ("a", "b", "c", "d")


def names_of(tokens: Sequence[int], tenant: str = "alice") -> list[str]:
    """As the coordinator names a prompt's blocks: each by everything before it, and by who asks."""
    running, names = hashlib.blake2b(tenant.encode(), digest_size=16), []
    for stop in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        running.update(repr(tokens[stop - BLOCK_TOKENS : stop]).encode())
        names.append(running.hexdigest())
    return names


# ---------------------------------------------------------------- names and blocks


def test_a_beginning_is_found_as_far_as_it_goes() -> None:
    cache = PrefixCache()
    assert cache.release([5, 6, 7], NAMES[:3]) == []
    assert cache.use(["a", "b", "x"]) == [5, 6]
    assert cache.use(["x", "b"]) == []
    cache.validate([5, 6])


def test_blocks_without_a_name_are_free_at_once() -> None:
    cache = PrefixCache()
    assert cache.release([5, 6, 7], NAMES[:1]) == [7, 6]
    cache.validate([])


def test_of_two_blocks_with_one_name_the_first_stays() -> None:
    cache = PrefixCache()
    cache.release([5, 6], NAMES[:2])
    assert cache.release([8, 9], NAMES[:2]) == [9, 8]
    assert cache.use(NAMES) == [5, 6]


def test_a_block_rests_when_its_last_user_has_gone() -> None:
    cache = PrefixCache()
    cache.release([5], ["a"])
    assert cache.use(["a"]) == cache.use(["a"]) == [5]
    cache.release([5])
    assert cache.num_resting == 0
    cache.release([5], ["a"])
    assert cache.num_resting == 1
    cache.validate([])


def test_what_was_used_longest_ago_goes_first_and_ends_before_their_beginnings() -> None:
    cache = PrefixCache()
    cache.release([1, 2], ["a", "b"])
    cache.release([3, 4], ["c", "d"])
    cache.release(cache.use(["a", "b"]), ["a", "b"])
    assert [cache.evict(1)[0] for _ in range(4)] == [4, 3, 2, 1]
    assert cache.use(NAMES) == []


def test_a_beginning_that_was_computed_twice_is_as_young_as_what_comes_behind_it() -> None:
    cache = PrefixCache()
    cache.release([1], ["a"])
    cache.release([9], ["x"])
    assert cache.release([2, 3], ["a", "b"]) == [2]
    assert cache.evict(2) == [9, 3]


# ---------------------------------------------------------------- in the pool


def pool(num_blocks: int, device: Device, *, keeps_tables: bool = False) -> KvCache:
    shape = LayerShape(0, 1, 4, 4)
    return KvCache([shape], num_blocks * BLOCK_TOKENS * 32, torch.float32, device, keeps_tables=keeps_tables)


def left(cache: KvCache, names: Sequence[str], num_blocks: int) -> list[int]:
    """A session that wrote all it had reserved, and has ended; where it was."""
    table = cache.open(num_blocks * BLOCK_TOKENS)
    table.advance(table.capacity)
    cache.close(table, names, table.length)
    return table.blocks


def test_a_partly_written_block_is_never_shared(device: Device) -> None:
    cache = pool(8, device)
    table = cache.open(3 * BLOCK_TOKENS)
    cache.close(table, NAMES, 2 * BLOCK_TOKENS - 1)
    assert cache.open(3 * BLOCK_TOKENS, NAMES).num_shared == 1
    cache.validate()


def test_cached_blocks_count_as_free_and_give_way(device: Device) -> None:
    cache = pool(4, device)
    left(cache, NAMES, 4)
    assert cache.num_free_tokens == cache.num_tokens
    table = cache.open(3 * BLOCK_TOKENS)
    cache.validate()
    cache.close(table)
    assert cache.open(4 * BLOCK_TOKENS, NAMES).num_shared == 1


def test_whoever_shares_blocks_has_room_for_all_of_its_own(device: Device) -> None:
    """Two sessions share all but one block, and one of them has to compute everything after all."""
    cache = pool(8, device)
    left(cache, NAMES[:3], 3)
    first, second = (cache.open(4 * BLOCK_TOKENS, NAMES[:3]) for _ in range(2))
    assert first.blocks[:3] == second.blocks[:3]
    assert cache.num_free_tokens == 0
    with pytest.raises(KvFullError):
        cache.open(1)
    cache.begin(second, 0)
    assert not set(first.blocks) & set(second.blocks)
    cache.validate()


def test_a_session_goes_on_right_behind_its_beginning_where_it_can(device: Device) -> None:
    """Then its keys are a view of the pool again."""
    cache = pool(8, device)
    cache.open(BLOCK_TOKENS)
    left(cache, NAMES[:2], 2)
    table = cache.open(4 * BLOCK_TOKENS, NAMES)
    assert (table.blocks, table.first_slot) == ([1, 2, 3, 4], BLOCK_TOKENS)


def test_the_devices_block_table_follows(device: Device) -> None:
    cache = pool(8, device, keeps_tables=True)
    left(cache, NAMES[:2], 2)
    cache.open(3 * BLOCK_TOKENS, NAMES)
    table = cache.open(3 * BLOCK_TOKENS, NAMES)
    cache.begin(table, BLOCK_TOKENS)
    assert cache.tables is not None
    assert table.row is not None
    assert cache.tables.blocks[table.row, :3].tolist() == table.blocks


def test_nobody_writes_where_others_read(device: Device) -> None:
    cache = pool(8, device)
    left(cache, NAMES[:2], 2)
    table = cache.open(3 * BLOCK_TOKENS, NAMES)
    table.length = 3
    with pytest.raises(AssertionError, match="is not written to"):
        table.advance(1)


class Sharing(RuleBasedStateMachine):
    """Sessions of a few beginnings come, begin somewhere, write, and go. Each block's content is who wrote it last:
    whoever shares it must find what its name says."""

    NUM_BLOCKS = 12

    def __init__(self) -> None:
        super().__init__()
        self.cache = pool(self.NUM_BLOCKS, Device.open("cpu"))
        self.open: list[tuple[KvTable, list[str]]] = []
        self.content: dict[int, str] = {}

    @rule(num_blocks=st.integers(1, 6), branches=st.lists(st.sampled_from("xy"), min_size=6, max_size=6))
    def open_one(self, num_blocks: int, branches: list[str]) -> None:
        names = ["".join(branches[: place + 1]) for place in range(num_blocks)]
        num_free = self.cache.num_free_tokens // BLOCK_TOKENS
        try:
            table = self.cache.open(num_blocks * BLOCK_TOKENS, names[:-1])
        except KvFullError:
            assert num_blocks > num_free
            return
        assert num_blocks <= num_free
        assert [self.content[block] for block in table.blocks[: table.num_shared]] == names[: table.num_shared]
        self.open.append((table, names))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def begin_one(self, data: st.DataObject) -> None:
        table, _ = data.draw(st.sampled_from(self.open))
        if table.length == table.num_shared * BLOCK_TOKENS:
            self.cache.begin(table, data.draw(st.integers(0, table.num_shared)) * BLOCK_TOKENS)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def write_one(self, data: st.DataObject) -> None:
        table, names = data.draw(st.sampled_from(self.open))
        if table.length < table.capacity:
            place = table.length // BLOCK_TOKENS
            table.advance(BLOCK_TOKENS)
            self.content[table.blocks[place]] = names[place]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_named=st.booleans())
    def close_one(self, data: st.DataObject, is_named: bool) -> None:
        table, names = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.cache.close(table, names if is_named else (), table.length)

    @invariant()
    def what_is_open_holds_what_it_wrote(self) -> None:
        self.cache.validate()
        for table, names in self.open:
            num_written = table.length // BLOCK_TOKENS
            assert [self.content[block] for block in table.blocks[:num_written]] == names[:num_written]


TestSharing = Sharing.TestCase


# ---------------------------------------------------------------- answers of real models


CUTS = (0, 2, 6)
NUM_NEW = 20
SYSTEM, FIRST, SECOND = reference.random_prompts((40, 9, 7), seed=11)
FAMILIES = ["llama", "qwen2-sliding", "gemma2", "gemma3", "gpt_oss", "deepseek_v3", "llama4", "gpt2"]
"""Full, sliding, chunked and latent attention, and positions that are no rotations."""
LATE = 1e18
"""A time at which every meter tells what it has counted."""


def answer(chain: Chain, number: int, prompt: Sequence[int], tenant: str = "alice", begin: int | None = None) -> int:
    """Serve it to its end, from the row on from which all stages lack some (or `begin`). Returns that row."""
    names = names_of([*prompt], tenant)
    chain.start(number, len(prompt), NUM_NEW, names=names)
    first = min(chain.found(number)) if begin is None else begin
    chain.prompt(number, prompt[first:], first)
    chain.run()
    chain.end(number, names=names_of([*prompt, *chain.tokens(number)], tenant))
    return first


def num_computed(chain: Chain) -> list[int]:
    """Rows of each stage since they were counted last."""
    done = [engine.meter.take(LATE) for engine in chain.engines]
    return [0 if work is None else work.num_decode_rows + work.num_prompt_tokens for work in done]


def watched(chain: Chain) -> list[Tensor]:
    """The logits of the tail's steps, from now on."""
    seen: list[Tensor] = []
    tail = chain.stages[-1]
    forward = tail.forward

    def watching(*args: object) -> Tensor:
        seen.append(forward(*args).clone())  # type: ignore[arg-type]
        return seen[-1]

    tail.forward = watching  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("open_paged", [None, PagedOpener()])
def test_a_second_turn_computes_what_is_new_and_answers_the_same(
    architecture: str, open_paged: PagedOpener | None, chain: BuildChain, checkpoint: Callable[[str], Path]
) -> None:
    two = chain(architecture, CUTS, open_paged=open_paged)
    assert answer(two, 0, [*SYSTEM, *FIRST]) == 0
    log = [*SYSTEM, *FIRST, *two.tokens(0), *SECOND]
    num_computed(two)
    first = answer(two, 1, log)
    assert first == (len(log) - len(SECOND) - 1) // BLOCK_TOKENS * BLOCK_TOKENS, "the answer's rows are there as well"
    assert num_computed(two) == [len(log) + NUM_NEW - 1 - first] * 2
    assert two.tokens(1) == reference.generate(checkpoint(architecture), [log], NUM_NEW)[0]
    assert two.failures() == []


def test_logits_are_the_same_with_the_cache_and_without(chain: BuildChain) -> None:
    with_cache, without = chain(cuts=CUTS), chain(cuts=CUTS)
    answer(with_cache, 0, [*SYSTEM, *FIRST])
    seen, wanted = watched(with_cache), watched(without)
    prompt = [*SYSTEM, *SECOND]
    assert answer(with_cache, 1, prompt) == len(SYSTEM) // BLOCK_TOKENS * BLOCK_TOKENS
    assert answer(without, 1, prompt) == 0
    assert with_cache.tokens(1) == without.tokens(1)
    for found, want in zip(seen, wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_another_tenant_computes_the_same_prompt_itself(chain: BuildChain) -> None:
    two = chain(cuts=CUTS)
    answer(two, 0, [*SYSTEM, *FIRST])
    assert answer(two, 1, [*SYSTEM, *FIRST], tenant="bob") == 0
    assert answer(two, 2, [*SYSTEM, *FIRST], tenant="bob") > 0
    assert two.tokens(0) == two.tokens(1) == two.tokens(2)


@pytest.mark.parametrize("replaced", [0, 1])
def test_what_one_stage_lacks_all_compute(replaced: int, chain: BuildChain) -> None:
    two = chain(cuts=CUTS)
    answer(two, 0, [*SYSTEM, *FIRST])
    two.replace(replaced)
    assert answer(two, 1, [*SYSTEM, *FIRST]) == 0
    assert sorted(two.found(1)) == [0, 48]
    assert two.tokens(1) == two.tokens(0)
    assert two.failures() == []


@pytest.mark.parametrize("begin", [0, 16, 32])
def test_a_chain_may_begin_anywhere_within_what_its_stages_have(begin: int, chain: BuildChain) -> None:
    """While another session reads the blocks that it does not use."""
    two = chain(cuts=CUTS)
    answer(two, 0, [*SYSTEM, *FIRST])
    names = names_of([*SYSTEM, *FIRST])
    two.start(1, len(SYSTEM) + len(FIRST), NUM_NEW, names=names)
    two.prompt(1, FIRST[-1:], 48)
    two.step()
    answer(two, 2, [*SYSTEM, *FIRST], begin=begin)
    two.run()
    assert two.tokens(1) == two.tokens(2) == two.tokens(0)
    two.end(1)


@pytest.mark.parametrize("replaced", [0, 1, 2])
def test_a_stage_that_is_lost_behind_a_cached_beginning_gets_its_rows_from_the_one_before_it(
    replaced: int, chain: BuildChain
) -> None:
    three = chain(cuts=(0, 2, 4, 6))
    prompt = [*SYSTEM, *FIRST]
    answer(three, 0, prompt)
    wanted = three.tokens(0)
    three.start(1, len(prompt), NUM_NEW, names=names_of(prompt))
    three.prompt(1, prompt[48:], 48)
    while len(three.tokens(1)) < 6:
        three.step()
    three.replace(replaced)
    log = [*prompt, *three.tokens(1)]
    kept = [0 if stage == replaced else len(log) - 1 for stage in range(3)]
    three.resume(1, log, NUM_NEW - 6, 2, kept)
    three.run()
    assert three.tokens(1) == wanted
    assert three.failures() == []
    three.end(1, epoch=2)


def test_answers_outlive_evictions(chain: BuildChain, checkpoint: Callable[[str], Path]) -> None:
    """A pool of so few blocks that each answer drives out another one's."""
    two = chain(cuts=CUTS, max_kv_bytes=2**17)
    prompts = [[*SYSTEM[:24], *tail] for tail in reference.random_prompts((20, 9, 30), seed=5)]
    wanted = reference.generate(checkpoint("llama"), prompts, NUM_NEW)
    firsts = [answer(two, number, prompts[number % 3]) for number in range(9)]
    assert [two.tokens(number) for number in range(9)] == wanted * 3
    assert max(firsts) > 0
    assert two.failures() == []
