"""The forward of devices that capture graphs answers as the CPU's own, whatever is padded, fused or compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.runtime import paged_forward
from client.runtime.batch import lay_out
from client.runtime.compiled_layers import CompiledLayers
from client.runtime.kv_cache import LayerShape
from client.runtime.paged_forward import choose_decode
from client.runtime.paged_steps import gather_decode
from client.runtime.state_pool import StatefulCache, StatefulTable
from tests.client.runtime import reference
from tests.client.runtime.chain import Chain, load_stage
from tests.client.runtime.recording import PagedOpener
from tests.fakes.tiny_models import ARCHITECTURES, RECURRENT

BuildChain = Callable[..., Chain]
PROMPTS = reference.random_prompts((5, 37, 23))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_captured_steps_and_chunks_of_prompts_give_the_tokens_of_the_cpus_own_path(
    architecture: str, chain: BuildChain
) -> None:
    wanted = chain(architecture).generate(PROMPTS, 7)
    opener = PagedOpener()
    paged = chain(architecture, (0, 2, 6), max_batch_tokens=18, open_paged=opener)
    assert paged.generate(PROMPTS, 7) == wanted
    assert opener.recorder.num_replayed > 5


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_session_that_begins_with_one_row_begins_without_states(architecture: str, chain: BuildChain) -> None:
    prompts = reference.random_prompts((1, 9, 1, 1))
    wanted = [chain(architecture).generate([prompt], 7)[0] for prompt in prompts]
    opener = PagedOpener()
    paged = chain(architecture, (0, 6), max_kv_bytes=2**24, open_paged=opener)
    for _ in range(2):  # the second time over what the first has left
        paged.tail.messages.clear()
        assert paged.generate(prompts, 7) == wanted
    assert opener.recorder.num_replayed > 5


@pytest.mark.parametrize("architecture", RECURRENT)
def test_padded_rows_leave_the_states_of_sessions_as_they_are(
    architecture: str, checkpoint: Callable[[str], Path]
) -> None:
    stage = load_stage(checkpoint(architecture), 0, 6, max_kv_bytes=2**24, open_paged=PagedOpener())
    cache = stage.cache
    assert isinstance(cache, StatefulCache)
    tables = [cache.open(40) for _ in range(3)]
    for table in tables:
        stage.forward(lay_out([(table, 20)]), torch.arange(3, 23), [])
        table.advance(20)
    kept = tables[-1]
    assert isinstance(kept, StatefulTable)
    at = torch.tensor([kept.current_place])
    layers = [layer for layer in range(6) if layer not in cache.layers]  # a layer has KV or states
    assert layers
    before = [cache.states.read(layer, at) for layer in layers]
    stage.forward(lay_out([(table, 1) for table in tables[:2]]), torch.arange(2), [])  # padded to four rows
    for layer, states in zip(layers, before, strict=True):
        after = cache.states.read(layer, at)
        for old, new in ((states.conv, after.conv), (states.recurrent, after.recurrent)):
            assert (old is None and new is None) or (old is not None and new is not None and torch.equal(old, new))


def test_padded_rows_leave_the_keys_of_sessions_as_they_are(checkpoint: Callable[[str], Path]) -> None:
    stage = load_stage(checkpoint("llama"), 0, 3, open_paged=PagedOpener())
    layers = list(stage.cache.layers.values())
    for layer in layers:
        layer.keys.zero_()
    tables = [stage.cache.open(40) for _ in range(5)]
    for table in tables:
        stage.forward(lay_out([(table, 20)]), torch.arange(3, 23), [])
        table.advance(20)
    before = [layer.keys.clone() for layer in layers]
    stage.forward(lay_out([(table, 1) for table in tables]), torch.arange(5), [])  # padded to eight rows
    written = [int(table.slots[20]) for table in tables]
    for layer, keys in zip(layers, before, strict=True):
        changed = (layer.keys != keys).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert set(changed) - {stage.cache.num_tokens} == set(written)


def test_hidden_states_that_are_not_finite_stay_with_their_own_row(checkpoint: Callable[[str], Path]) -> None:
    stage = load_stage(checkpoint("llama"), 2, 4, open_paged=PagedOpener())
    tables = [stage.cache.open(16) for _ in range(3)]
    hidden = torch.randn(3, stage.hidden_size)
    alone = stage.forward(lay_out([(tables[0], 1)]), hidden[:1], []).clone()
    hidden[1] = torch.nan
    for _ in range(2):  # padded to four rows; the second time over what the first has left
        output = stage.forward(lay_out([(table, 1) for table in tables]), hidden, [])
        assert torch.isfinite(output).all(1).tolist() == [True, False, True]
    torch.testing.assert_close(output[0], alone[0])
    again = stage.forward(lay_out([(tables[2], 1)]), hidden[2:], [])
    assert bool(torch.isfinite(again).all())


def test_logits_come_for_the_rows_that_are_asked_for(checkpoint: Callable[[str], Path]) -> None:
    stage = load_stage(checkpoint("llama"), 0, 6, open_paged=PagedOpener())
    layout = lay_out([(stage.cache.open(4), 1) for _ in range(3)])
    tokens = torch.tensor([7, 8, 9])
    whole = stage.forward(layout, tokens, [0, 1, 2]).clone()
    assert torch.equal(stage.forward(layout, tokens, [0, 2]), whole[[0, 2]])
    assert stage.forward(layout, tokens, []).shape == (0, stage.vocab_size)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3_moe", "gpt_oss"])
def test_layers_of_a_kind_are_compiled_once(
    architecture: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load_stage(checkpoint(architecture), 0, 6, open_paged=PagedOpener())
    layout = lay_out([(stage.cache.open(8), 5)])
    tokens = torch.arange(3, 8)
    wanted = stage.forward(layout, tokens, [4])
    paged = stage._paged
    assert paged is not None
    num_compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        nonlocal num_compiled
        num_compiled += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = CompiledLayers(stage.cut.own_layers, dynamic=False, backend=backend)  # type: ignore[arg-type]
    monkeypatch.setattr(paged_forward, "MIN_COMPILED_ROWS", 1)
    paged._compiled_mixed = compiled
    torch.testing.assert_close(stage.forward(layout, tokens, [4]), wanted)
    kinds = {(shape.window, shape.chunk) for shape in stage.cache.shapes}
    assert num_compiled == len(kinds)
    paged._compiled_mixed = None
    stage.forward(layout, tokens, [4])
    assert num_compiled == len(kinds)


@pytest.mark.expected_logs("Triton")
def test_without_triton_keys_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_forward, "has_triton", lambda: False)
    assert choose_decode([LayerShape(0, 2, 8, 8)], torch.float32, torch.device("cpu")) is gather_decode
