"""Tiny shapes through the whole command on a CPU: times, fits, page; and what fails is named while the rest stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.scheduling import calibrate
from benchmarks.scheduling.calibrate import (
    BATCH_SIZES,
    SHAPES,
    Bench,
    GraphClock,
    class_of,
    experts_hit,
    main,
    measure_shapes,
    products,
    run_all,
    table,
)
from benchmarks.scheduling.fitting import CHUNKS, Kind, Point, Series, sim_model
from client.runtime import benchmark
from client.runtime.architecture import read_architecture
from client.runtime.benchmark import LayerTimer, measure_layers, random_cut
from client.runtime.cut import CutModel, meta_cut
from client.runtime.device import Device

SMALL = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    "tiny": {**SMALL, "model_type": "llama"},
    "tiny-experts": {
        **SMALL, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "broken": {**SMALL, "model_type": "no-such-model"},
}  # fmt: skip
NUM_STEPS = 7


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SHAPES", TINY)
    monkeypatch.setattr(benchmark, "MEASURE_S", 0.003)


@pytest.fixture(scope="module")
def device() -> Device:
    return Device.open("cpu")


def steps_of(points: list[Point], name: str, series: Series) -> list[tuple[Kind, int]]:
    return [(point.kind, point.num_rows) for point in points if (point.shape, point.series) == (name, series)]


def test_tiny_shapes_go_through_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    assert main(["--device", "cpu", "--shapes", "tiny", "tiny-experts", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert len(found["points"]) == 2 * len(Series) * NUM_STEPS
    assert all(point["measured_s"] > 0.0 for point in found["points"])
    assert all(set(constants) >= {"bandwidth_share", "layer_overhead_s"} for constants in found["fits"].values())
    assert {residual["fit"] for residual in found["residuals"]} == set(found["fits"])
    assert list(found["fits"]) == ["runtime", "runtime, dense only", "runtime, chunks of 2,048"]
    page, progress = capsys.readouterr()
    assert "| tiny-experts | decode of 64 |" in page
    assert "(not fitted)" in page
    assert "| runtime, chunks of 2,048 |" in page
    assert "tiny: products, prefill of 2048: " in progress
    assert "tiny: products" not in page


def test_a_residual_is_of_the_chunks_that_its_fit_is_of(device: Device) -> None:
    run = run_all(device, "cpu-32g", ["tiny"])
    for name, sizes in {"runtime": [512], "runtime, chunks of 2,048": [2048]}.items():
        rows = [row for row in run.residuals() if row["fit"] == name]
        assert [row["num_rows"] for row in rows if row["kind"] == Kind.PREFILL] == sizes
        assert len(rows) == NUM_STEPS - 1


def test_every_step_is_timed_in_every_series(device: Device) -> None:
    points, failures = measure_shapes(["tiny-experts"], Bench(device))
    decode, prefill = [(Kind.DECODE, size) for size in BATCH_SIZES], [(Kind.PREFILL, size) for size in CHUNKS]
    expected = [*decode, *prefill, (Kind.HEAD, 1)]
    assert failures == {}
    assert all(steps_of(points, "tiny-experts", series) == expected for series in Series)


def test_the_runtime_is_measured_by_the_steps_that_a_node_measures_itself_by(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def noted(kind: str, size: int) -> float:
        done.append((kind, size))
        return 1e-3

    monkeypatch.setattr(LayerTimer, "decode_s", lambda _, size: noted("decode", size))
    monkeypatch.setattr(LayerTimer, "prefill_s", lambda _, size: noted("prefill", size))
    for module in (benchmark, calibrate):
        monkeypatch.setattr(module, "head_s", lambda *_: noted("head", 1))
    measure_layers(json.dumps(TINY["tiny"]), torch.float32, device, BATCH_SIZES, CHUNKS[0])
    by_node = list(done)
    done.clear()
    measure_shapes(["tiny"], Bench(device))
    assert [step for step in done if step != ("prefill", CHUNKS[1])] == by_node
    assert len(done) == len(by_node) + 1


def test_a_failing_shape_is_reported_by_name_and_the_others_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--shapes", "broken", "tiny"]) == 1
    page = capsys.readouterr().out
    assert "Not complete: broken: UnsupportedArchitectureError" in page
    assert "| tiny | decode of 64 |" in page
    assert "| broken |" not in page


def test_a_shape_that_the_runtime_cannot_measure_leaves_the_others(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(LayerTimer):
        def __init__(self, cut: CutModel, *args: Any) -> None:
            if cut.architecture.model_type == "qwen3_moe":
                raise RuntimeError("no kernel\nmore")
            super().__init__(cut, *args)

    monkeypatch.setattr(calibrate, "LayerTimer", Refusing)
    points, failures = measure_shapes(["tiny-experts", "tiny"], Bench(device))
    assert failures == {"tiny-experts": "RuntimeError: no kernel"}
    assert {point.shape for point in points} == {"tiny"}
    assert len(points) == 2 * NUM_STEPS


def test_what_came_before_a_failure_stays(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(calibrate, "products", out_of_memory)
    run = run_all(device, "cpu-32g", ["tiny"])
    assert run.failures == {"tiny": "OutOfMemoryError: no room"}
    assert len(run.points) == NUM_STEPS
    assert set(run.fits) == {"runtime", "runtime, chunks of 2,048"}
    assert "| tiny | decode of 1 |" in calibrate.report(run)


def test_nothing_measured_is_said(device: Device) -> None:
    with pytest.raises(SystemExit, match=r"nothing was measured.*broken"):
        run_all(device, "cpu-32g", ["broken"])


def test_no_shape_is_begun_when_the_time_is_up(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "LIMIT_S", -1.0)
    points, failures = measure_shapes(["tiny"], Bench(device))
    assert (points, failures) == ([], {"tiny": "not begun: the time was up"})


class FakeCuda:
    """What GraphClock uses of torch.cuda: a replay takes `replay_ms`, and `breaks` makes the end of a recording fail.

    As torch's, it leaves its own stream current in that case."""

    def __init__(self, replay_ms: float, breaks: bool) -> None:
        self.replay_ms = replay_ms
        self.breaks = breaks
        self.now_ms = 0.0
        self.current: Any = self.Stream()
        self.default = self.current

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    def current_stream(self) -> Any:
        return self.current

    def set_stream(self, stream: object) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        before, self.current = self.current, self.Stream()
        yield
        if self.breaks:
            raise RuntimeError("the recording is invalid")
        self.current = before

    def CUDAGraph(self) -> Any:  # noqa: N802 - torch's name
        return SimpleNamespace(replay=self._replay)

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802 - torch's name
        event = SimpleNamespace(synchronize=lambda: None, at_ms=0.0)
        event.record = lambda: setattr(event, "at_ms", self.now_ms)
        event.elapsed_time = lambda end: end.at_ms - event.at_ms
        return event

    def _replay(self) -> None:
        self.now_ms += self.replay_ms


@pytest.mark.parametrize("step_ms", [0.05, 3.0, 20.0])
def test_a_recorded_step_takes_its_share_of_a_replay(
    step_ms: float, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(step_ms * calibrate.STEPS_IN_GRAPH, breaks=False)
    monkeypatch.setattr(torch, "cuda", cuda)
    steps: list[int] = []
    assert GraphClock(device).median_s(lambda: steps.append(1)) == pytest.approx(step_ms / 1e3)
    assert len(steps) == calibrate.NUM_WARM_UPS + calibrate.STEPS_IN_GRAPH
    assert cuda.now_ms < 2_000.0


def test_a_broken_recording_leaves_the_stream_that_was_there(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(1.0, breaks=True)
    monkeypatch.setattr(torch, "cuda", cuda)
    with pytest.raises(RuntimeError, match="invalid"):
        GraphClock(device).median_s(lambda: None)
    assert cuda.current is cuda.default


def test_products_read_the_weights_of_the_layer_and_of_the_experts_that_are_chosen(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(torch, "matmul", lambda rows, weight: read.append(weight.numel()))
    cut = random_cut(read_architecture(json.dumps(TINY["tiny-experts"])), 2, 3, torch.float32, device)
    products(Bench(device), cut, 1, 2)()
    model = sim_model("tiny-experts", TINY["tiny-experts"], 4)
    router = 8 * 64
    assert sum(read) == model.facts.active_numels[2] + router


@pytest.mark.parametrize(("num_rows", "num_hit"), [(1, 8), (4, 29), (16, 82), (512, 128)])
def test_more_rows_choose_more_experts_up_to_all(num_rows: int, num_hit: int) -> None:
    assert experts_hit(128, 8, num_rows) == num_hit


@pytest.mark.parametrize("name", list(SHAPES))
def test_published_shapes_have_the_weights_that_the_simulator_counts(name: str) -> None:
    config = {**SHAPES[name], "num_hidden_layers": 3}
    cut = meta_cut(read_architecture(json.dumps(config)), 1, 2)
    num_weights = sum(weight.numel() for weight in cut.model.parameters())
    counted = sim_model(name, config, 2).facts.layer_numels[1]
    assert num_weights == pytest.approx(counted, rel=1e-3)  # norms and routers are not counted


def test_a_card_without_a_data_sheet_must_be_given_one(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_of(device, None) == "cpu-32g"
    monkeypatch.setattr(Device, "is_cpu", False)
    monkeypatch.setattr(Device, "name", "NVIDIA H100 80GB HBM3")
    assert class_of(device, None) == "h100-80g"
    monkeypatch.setattr(Device, "name", "NVIDIA H100 PCIe")
    with pytest.raises(SystemExit, match="--class"):
        class_of(device, None)
    assert class_of(device, "a100-80g") == "a100-80g"


def test_a_table_has_a_line_for_each_row() -> None:
    assert table([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
