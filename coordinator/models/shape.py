"""A model's sizes, part by part, as the scheduler plans with them: elements, for bytes follow from the variant."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.models.active import active_numels, kv_numels
from coordinator.models.recurrent import state_shares
from protocol.manifest import Manifest, Part, has_own_head, parts_of
from protocol.quantisation import NOTHING, Packed, packed_as
from protocol.values import MIN_STATEFUL_TOKENS, LayerRange


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Numbers of elements. `head_numel` is final norm and lm_head; a tied lm_head counts, for the last stage holds
    a copy of the embedding. `kv_numel_per_token` is of one layer.

    `active_numels` is per layer what one token's step reads (empty: all), `kv_numels` per layer what a token adds to
    the KV cache (empty: `kv_numel_per_token` each)."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    layer_numels: tuple[int, ...]
    embedding_numel: int
    head_numel: int
    kv_numel_per_token: int
    active_numels: tuple[int, ...] = ()
    kv_numels: tuple[int, ...] = ()
    packed_layers: tuple[Packed, ...] = ()
    """Per layer, what is in fewer bits (empty: nothing), as in the two ends."""
    packed_embedding: Packed = NOTHING
    packed_head: Packed = NOTHING
    min_session_tokens: int = 0
    """What each session reserves at least: of a model with recurrent states, for these."""

    @property
    def numel(self) -> int:
        """Of all parts together, as they are served."""
        return sum(self.layer_numels) + self.embedding_numel + self.head_numel

    def slice_numel(self, layers: LayerRange) -> int:
        """Of a stage with these layers, the ends' own parts included."""
        first = self.embedding_numel if layers.start == 0 else 0
        last = self.head_numel if layers.stop == self.num_layers else 0
        return first + sum(self.layer_numels[layers.start : layers.stop]) + last


def model_shape(manifest: Manifest, kv_numel_per_token: int) -> ModelShape:
    """Sizes by the manifest's tensors. Raises ManifestError if they do not have the layers it claims, BrokenModelError
    if the size of recurrent states is not known."""
    parts, shares = parts_of(manifest), state_shares(manifest)
    numel: dict[int | Part, int] = dict.fromkeys(Part, 0)
    packed: dict[int | Part, Packed] = dict.fromkeys(Part, NOTHING)
    for tensor in manifest.tensors:
        part = parts[tensor.name]
        numel[part] = numel.get(part, 0) + tensor.numel
        packed[part] = packed.get(part, NOTHING) + packed_as(tensor, part, manifest.quantisation)
    is_tied = not has_own_head(manifest)
    tied = numel[Part.EMBEDDING] if is_tied else 0
    return ModelShape(
        num_layers=manifest.num_layers,
        hidden_size=manifest.hidden_size,
        vocab_size=manifest.vocab_size,
        context_length=manifest.context_length,
        layer_numels=tuple(numel[layer] for layer in range(manifest.num_layers)),
        embedding_numel=numel[Part.EMBEDDING],
        head_numel=numel[Part.HEAD] + tied,
        kv_numel_per_token=kv_numel_per_token,
        active_numels=active_numels(manifest),
        kv_numels=kv_numels(manifest, shares),
        packed_layers=tuple(packed[layer] for layer in range(manifest.num_layers)) if manifest.quantisation else (),
        packed_embedding=packed[Part.EMBEDDING],
        packed_head=packed[Part.HEAD] + (packed[Part.EMBEDDING] if is_tied else NOTHING),
        min_session_tokens=MIN_STATEFUL_TOKENS if shares else 0,
    )
