from __future__ import annotations

import msgspec
import pytest

from coordinator.models.build import build_manifest, check_folder
from coordinator.models.shape import ModelShape, model_shape
from protocol.manifest import Manifest, ManifestError, TensorSpec
from protocol.values import LayerRange

LAYER = 32 * 16 + 16
EMBEDDING = 400 * 16


@pytest.fixture
def manifest(tiny) -> Manifest:  # type: ignore[no-untyped-def]
    return build_manifest(check_folder(tiny), "tiny", lambda *_: None)


def _shape(manifest: Manifest) -> ModelShape:
    return model_shape(manifest, kv_numel_per_token=16)


def test_each_part_has_its_elements_and_a_tied_head_counts_as_one(manifest: Manifest) -> None:
    shape = _shape(manifest)
    assert shape.layer_numels == (LAYER,) * 3
    assert shape.embedding_numel == EMBEDDING
    assert shape.head_numel == 16 + EMBEDDING
    assert shape.numel == 3 * LAYER + 2 * EMBEDDING + 16


def test_a_head_of_its_own_is_not_counted_twice(manifest: Manifest) -> None:
    head = TensorSpec("lm_head.weight", 1, "F16", (400, 16), 0, 0)
    shape = _shape(msgspec.structs.replace(manifest, tensors=(*manifest.tensors, head)))
    assert shape.head_numel == 16 + EMBEDDING


@pytest.mark.parametrize(
    ("start", "stop", "numel"),
    [(1, 2, LAYER), (0, 1, EMBEDDING + LAYER), (2, 3, LAYER + 16 + EMBEDDING), (0, 3, 3 * LAYER + 2 * EMBEDDING + 16)],
)
def test_a_slice_has_its_layers_and_the_ends_their_own_parts(
    manifest: Manifest, start: int, stop: int, numel: int
) -> None:
    assert _shape(manifest).slice_numel(LayerRange(start, stop)) == numel


def test_a_manifest_without_the_layers_it_claims_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="4 numbered layers"):
        _shape(msgspec.structs.replace(manifest, num_layers=4))
