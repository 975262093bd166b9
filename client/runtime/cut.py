"""Cutting a model down to layers [start, stop) while keeping its own, unmodified forward.

The whole model is instantiated and foreign modules are replaced by stand-ins, so that layer indices, rotary
embeddings and masks stay what they were. transformers' own pipeline parallelism does the same
(`transformers/distributed/pipeline_parallel.py`, `PipelineIdentityLayer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from client.runtime.architecture import Architecture


class Skip(nn.Module):
    """In place of a layer, norm or head that another stage owns: returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class NoEmbedding(nn.Module):
    """In place of an embedding that another stage owns. Its result is added to or scaled, then replaced by Entry."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        ids = args[0] if args else next(iter(kwargs.values()))
        return torch.zeros((), device=ids.device)


class Entry(nn.Module):
    """In place of the layer before the first own one: whatever the prologue made of the input (Granite's multiplier,
    GPT-2's learned positions, dropout), the first own layer sees the hidden states that were received."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.hidden


@dataclass(frozen=True)
class CutModel:
    """A transformers model of which only layers [start, stop) are real. `body` is the part without the head."""

    model: Any
    architecture: Architecture
    start: int
    stop: int
    body: Any
    layers_path: str
    entry: Entry | None

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.stop == self.architecture.num_layers

    @property
    def own_layers(self) -> list[nn.Module]:
        """The real layers, first to last."""
        layers = self.model.get_submodule(self.layers_path)
        return [layers[index] for index in range(self.start, self.stop)]


def call_model(cut: CutModel, inputs: Tensor, positions: Tensor, logit_rows: Tensor | None) -> Tensor:
    """The model's own forward over rows: token ids [rows] on a first stage, else hidden states [rows, hidden size].

    Returns hidden states [rows, hidden size], or of a last stage logits [rows or those of `logit_rows`, vocabulary]."""
    kwargs: dict[str, Any] = {"position_ids": positions[None], "use_cache": False}
    if cut.is_first:
        kwargs["input_ids"] = inputs[None]
    else:
        assert cut.entry is not None
        kwargs["inputs_embeds"] = cut.entry.hidden = inputs[None]
    if not cut.is_last:
        hidden: Tensor = cut.body(**kwargs).last_hidden_state[0]
        return hidden
    logits: Tensor = cut.model(**kwargs, logits_to_keep=0 if logit_rows is None else logit_rows).logits[0]
    return logits


def cut_class(architecture: Architecture, start: int, stop: int) -> Any:
    """The architecture's model class, whose instances are cut to [start, stop) as soon as they are built."""
    parent = architecture.model_class

    class Cut(parent):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            self.decentllm_cut = _cut(self, architecture, start, stop)

    # Weight conversions are looked up by class name, and only for classes that live inside transformers.
    Cut.__name__, Cut.__qualname__, Cut.__module__ = parent.__name__, parent.__qualname__, parent.__module__
    return Cut


def meta_cut(architecture: Architecture, start: int, stop: int) -> CutModel:
    """The cut model without memory, for names and shapes."""
    with torch.device("meta"):
        return cut_of(cut_class(architecture, start, stop)(architecture.config))


def cut_of(model: Any) -> CutModel:
    """How this instance of a `cut_class` is cut."""
    cut: CutModel = model.decentllm_cut
    return cut


def _cut(model: Any, architecture: Architecture, start: int, stop: int) -> CutModel:
    path, layers = _find_layers(model, architecture.num_layers)
    body = model.get_submodule(path.rpartition(".")[0])
    entry = Entry() if start else None
    for index in range(len(layers)):
        if not start <= index < stop:
            layers[index] = entry if entry is not None and index == start - 1 else Skip()
    is_last = stop == architecture.num_layers
    # A head that is tied to the embedding needs it; learned positions (GPT-2, OPT) only the first stage needs.
    tied = model.get_input_embeddings() if is_last and architecture.has_tied_embeddings else None
    _replace_surroundings(body, layers, lambda embedding: start == 0 or embedding is tied, is_last)
    if not is_last:
        _drop_head(model)
    return CutModel(model, architecture, start, stop, body, path, entry)


def _find_layers(model: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers: the shallowest list of that length, whatever the family calls it."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    return min(lists, key=lambda found: found[0].count("."))


def _replace_surroundings(
    body: nn.Module, layers: nn.ModuleList, keeps_embedding: Callable[[nn.Module], bool], keeps_norm: bool
) -> None:
    for name, child in list(body.named_children()):
        if child is layers or _is_shared(child):
            continue
        if isinstance(child, nn.Embedding):
            if not keeps_embedding(child):
                setattr(body, name, NoEmbedding())
        elif not keeps_norm:
            setattr(body, name, Skip())


def _is_shared(child: nn.Module) -> bool:
    """Every stage keeps what has no weights, such as rotary embeddings. OLMo's final norm has none and is a norm."""
    has_weights = any(True for _ in child.parameters())
    return not has_weights and "norm" not in type(child).__name__.lower()


def _drop_head(model: Any) -> None:
    head = model.get_output_embeddings()
    for name, child in list(model.named_children()):
        if child is head:
            setattr(model, name, Skip())
    model.all_tied_weights_keys = {}  # nothing is left to tie; transformers' pipeline stages do the same
