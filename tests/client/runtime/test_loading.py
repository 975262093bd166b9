"""Loading a slice: exactly the planned tensors are read, and a tensor that is not usable is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from client.runtime.checkpoint import INDEX_FILE, SINGLE_FILE
from client.runtime.cut import CutModel
from client.runtime.device import Device
from client.runtime.errors import BadConfigError, BadWeightsError, UnsupportedArchitectureError
from client.runtime.loading import load_folder, plan_slice
from protocol.values import LayerRange
from tests.fakes.tiny_models import ARCHITECTURES, config_json, save_tiny

UP = "model.layers.3.mlp.up_proj.weight"


def load(folder: Path, start: int = 2, stop: int = 4, progress: Callable[[int, int], None] | None = None) -> CutModel:
    device = Device.open("cpu")
    return load_folder(folder, LayerRange(start, stop), torch.float32, device, progress or (lambda done, total: None))


def names_in(folder: Path) -> tuple[str, ...]:
    with safe_open(folder / SINGLE_FILE, framework="pt") as file:
        return tuple(file.keys())


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plans_of_all_stages_name_every_tensor(architecture: str, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(architecture)
    names, config = names_in(folder), (folder / "config.json").read_text()
    plans = [plan_slice(config, LayerRange(start, stop), names) for start, stop in ((0, 2), (2, 5), (5, 6))]
    assert set().union(*plans) == set(names)
    assert sum(map(len, plans)) <= len(names) + 2  # a tied embedding is needed twice


def test_a_plan_is_made_from_names_alone() -> None:
    names = (UP, "model.layers.2.mlp.up_proj.weight", "model.norm.weight", "optimizer.state")
    assert plan_slice(config_json("llama"), LayerRange(3, 5), names) == (UP,)


def test_experts_of_a_slice_are_planned_one_by_one() -> None:
    names = tuple(f"model.layers.{n}.mlp.experts.{e}.up_proj.weight" for n in range(6) for e in range(4))
    assert plan_slice(config_json("qwen3_moe"), LayerRange(1, 2), names) == names[4:8]


def test_scales_that_lie_beside_a_layers_weights_are_planned_with_them() -> None:
    assert plan_slice(config_json("llama"), LayerRange(3, 5), (UP + "_scale_inv",)) == (UP + "_scale_inv",)


def test_a_checkpoint_of_another_model_has_nothing_to_plan() -> None:
    with pytest.raises(BadWeightsError, match="none of this slice's tensors"):
        plan_slice(config_json("llama"), LayerRange(0, 2), ("encoder.block.0.weight",))


def test_layers_beyond_the_model_are_refused() -> None:
    with pytest.raises(BadConfigError, match="it has 6 layers, 4-6 were asked for"):
        plan_slice(config_json("llama"), LayerRange(4, 7), (UP,))


def test_unsupported_models_are_refused_without_looking_for_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_json("bloom"))
    with pytest.raises(UnsupportedArchitectureError, match="'bloom'"):
        load(tmp_path)


def test_only_planned_tensors_are_read_of_a_sparse_file(llama: Path) -> None:
    """Foreign tensors hold NaN here, which a reader refuses: none of them has been read."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if not name.startswith(("model.layers.2.", "model.layers.3.")):
                tensor.fill_(float("nan"))

    rewrite(llama, spoil)
    assert len(list(load(llama).model.parameters())) == 18


def test_progress_ends_at_the_bytes_of_the_slice(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.runtime.loading.PROGRESS_BYTES", 20_000)
    seen: list[tuple[int, int]] = []
    cut = load(llama, progress=lambda done, total: seen.append((done, total)))
    total = sum(parameter.nbytes for parameter in cut.model.parameters())
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert {of for _, of in seen} == {total}


def test_a_missing_tensor_is_named_instead_of_filled_with_random_numbers(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.pop(UP))
    with pytest.raises(BadWeightsError, match=rf"tensor '{UP}' .* it is missing"):
        load(llama)


def test_a_tensor_of_the_wrong_shape_is_named(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({UP: torch.zeros(7, 64)}))
    with pytest.raises(BadWeightsError, match=rf"tensor '{UP}' .* its shape is \(7, 64\)"):
        load(llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_with_values_that_are_not_finite_is_named(value: float, llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors[UP].view(-1)[77].fill_(value))
    with pytest.raises(BadWeightsError, match=rf"tensor '{UP}' .* not finite"):
        load(llama)


def test_a_file_cut_short_is_bad_weights(llama: Path) -> None:
    file = llama / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadWeightsError, match=r"model\.safetensors cannot be read"):
        load(llama)


def test_a_header_of_random_bytes_is_bad_weights(llama: Path) -> None:
    (llama / SINGLE_FILE).write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00" + b"\xff" * 500)
    with pytest.raises(BadWeightsError):
        load(llama)


def test_a_folder_without_weights_is_bad_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_json("llama"))
    with pytest.raises(BadWeightsError, match=r"model\.safetensors"):
        load(tmp_path)


def test_pickled_weights_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_json("llama"))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadWeightsError):
        load(tmp_path)


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/model.safetensors", "pytorch_model.bin"])
def test_an_index_that_points_elsewhere_is_refused(file: str, llama: Path) -> None:
    (llama / INDEX_FILE).write_text(json.dumps({"weight_map": {UP: file}}))
    with pytest.raises(BadWeightsError, match="points outside the folder or to another format"):
        load(llama)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(text: str, llama: Path) -> None:
    (llama / INDEX_FILE).write_text(text)
    with pytest.raises(BadWeightsError, match="the index cannot be read"):
        load(llama)


def test_an_index_that_promises_a_tensor_the_file_lacks_is_refused(llama: Path) -> None:
    names = dict.fromkeys((*names_in(llama), UP.replace("up", "side")), SINGLE_FILE)
    (llama / INDEX_FILE).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(BadWeightsError, match=r"side_proj\.weight' .* does not hold it"):
        load(llama)


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_cannot_be_read_is_a_bad_config(text: str | None, llama: Path) -> None:
    (llama / "config.json").unlink()
    if text is not None:
        (llama / "config.json").write_text(text)
    with pytest.raises(BadConfigError):
        load(llama)


def test_weights_are_loaded_in_the_dtype_of_the_variant(llama: Path, device: Device) -> None:
    cut = load_folder(llama, LayerRange(0, 2), torch.bfloat16, device, lambda done, total: None)
    assert {parameter.dtype for parameter in cut.model.parameters()} == {torch.bfloat16}
