"""The worker as the agent sees it: a process at the end of a socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.ipc import (
    IPC_VERSION,
    AreYouThere,
    CommandFailed,
    EndSession,
    FramePacket,
    Here,
    LayersMeasured,
    LoadProgress,
    LoadSlice,
    MeasureLayers,
    PlanSlice,
    Sampled,
    SessionFailed,
    SessionStarted,
    SliceLoaded,
    SlicePlanned,
    StartSession,
)
from protocol.values import FinishReason, LayerRange, Sampling, StopRule, Variant
from tests.client.runtime import reference
from tests.client.runtime.chain import prompt_frame, session_id
from tests.client.runtime.worker_process import WorkerProcess
from tests.fakes.tiny_models import config_json, save_tiny

PROMPT = reference.random_prompts((9,))[0]
SID = session_id(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[WorkerProcess]:
    """One process for all tests that leave it usable: it takes seconds to start."""
    with WorkerProcess() as process:
        process.ready()
        yield process
        code, output, _ = process.finish()
        assert (code, output) == (0, "")


@pytest.fixture
def worker(shared_worker: WorkerProcess) -> Iterator[WorkerProcess]:
    yield shared_worker
    shared_worker.send(PlanSlice("{}", LayerRange(0, 1), ()))  # nothing unread may be left between tests
    assert shared_worker.expect(CommandFailed).code == "bad_config"


def load(worker: WorkerProcess, folder: Path, start: int = 0, stop: int = 6, kv_bytes: int = 2**20) -> SliceLoaded:
    worker.send(LoadSlice(str(folder), LayerRange(start, stop), Variant.FLOAT32, kv_bytes))
    while isinstance(answer := worker.receive(), LoadProgress):
        assert answer.done_bytes <= answer.total_bytes
    assert isinstance(answer, SliceLoaded), answer
    return answer


def failure(worker: WorkerProcess, message: LoadSlice | PlanSlice | MeasureLayers) -> str:
    worker.send(message)
    return worker.expect(CommandFailed).code


def start(stage: int = 0, num_stages: int = 1, num_new: int = 6) -> StartSession:
    is_tail = stage == num_stages - 1
    total = len(PROMPT) + num_new
    return StartSession(
        SID, 1, stage, num_stages, len(PROMPT), total, next_link=None if num_stages == 1 else 5,
        next_stage=(stage + 1) % num_stages, sampling=Sampling() if is_tail else None,
        stop=StopRule(total) if is_tail else None,
    )  # fmt: skip


def test_the_first_message_says_what_the_worker_is_and_the_end_of_file_ends_it() -> None:
    with WorkerProcess() as process:
        ready = process.ready()
        assert ready.ipc_version == IPC_VERSION
        assert ready.device_name
        assert ready.memory_bytes > 2**20
        assert process.finish() == (0, "", "")


def test_the_end_of_file_ends_a_worker_that_is_busy(folder: Path) -> None:
    with WorkerProcess() as process:
        process.ready()
        load(process, folder, kv_bytes=2**23)
        process.send(start(num_new=2000))
        process.expect(SessionStarted)
        process.send_frame(prompt_frame(0, PROMPT))
        process.expect(Sampled)
        assert process.finish() == (0, "", "")


def test_a_worker_that_is_asked_says_that_it_is_there_also_between_two_steps(folder: Path) -> None:
    with WorkerProcess() as process:
        process.ready()
        process.send(AreYouThere())
        process.expect(Here)
        load(process, folder, kv_bytes=2**23)
        process.send(start(num_new=200))
        process.expect(SessionStarted)
        process.send_frame(prompt_frame(0, PROMPT))
        process.expect(Sampled)
        process.send(AreYouThere())
        while not isinstance(answer := process.receive(), Here):
            assert isinstance(answer, Sampled)
            assert answer.finish_reason is None, "it answers before the end"


def test_a_device_that_is_not_there_ends_the_worker_with_code_3() -> None:
    with WorkerProcess("--device", "nonsense:0") as process:
        assert process.process.wait(60) == 3
        assert "device nonsense:0 does not answer" in process.process.communicate()[1]


def test_an_agent_of_another_build_ends_the_worker_with_code_2() -> None:
    with WorkerProcess() as process:
        process.ready()
        process.socket.sendall(b"\xff" * 64)
        assert process.process.wait(60) == 2
        assert "the agent is of another build" in process.process.communicate()[1]


def test_layers_are_measured(worker: WorkerProcess) -> None:
    worker.send(MeasureLayers(config_json("llama"), Variant.FLOAT32, (1, 4), 16))
    measured = worker.expect(LayersMeasured).benchmark
    assert [time.batch_size for time in measured.decode] == [1, 4]


def test_a_slice_is_planned(worker: WorkerProcess) -> None:
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
    worker.send(PlanSlice(config_json("llama"), LayerRange(1, 2), names))
    assert worker.expect(SlicePlanned).tensor_names == names[1:]


def test_a_whole_model_serves_in_one_process(worker: WorkerProcess, folder: Path) -> None:
    loaded = load(worker, folder)
    assert loaded.num_kv_tokens == 2**20 // (6 * 2 * 2 * 16 * 4) // 16 * 16
    assert loaded.can_truncate
    worker.send(start())
    assert worker.expect(SessionStarted) == SessionStarted(SID, 1)
    worker.send_frame(prompt_frame(0, PROMPT))
    sampled = [worker.expect(Sampled) for _ in range(6)]
    worker.send(EndSession(SID, 1))
    assert [token for message in sampled for token in message.tokens] == reference.generate(folder, [PROMPT], 6)[0]
    assert [message.finish_reason for message in sampled] == [None] * 5 + [FinishReason.LENGTH]
    assert all(message.timing.compute_us > 0 for message in sampled)


def test_what_was_computed_is_told_within_about_a_second_and_once(worker: WorkerProcess, folder: Path) -> None:
    load(worker, folder)
    worker.work.clear()
    worker.send(start())
    worker.expect(SessionStarted)
    worker.send_frame(prompt_frame(0, PROMPT))
    sampled = [worker.expect(Sampled) for _ in range(6)]
    worker.send(EndSession(SID, 1))
    done = worker.until_work(6)
    assert (done.num_steps, done.num_decode_rows, done.num_prompt_tokens) == (6, 5, len(PROMPT))
    assert done.compute_s == pytest.approx(sum(m.timing.compute_us for m in sampled) / 1e6, abs=1e-3)


def test_a_paced_worker_measures_and_computes_no_faster_than_its_pace_and_the_same(folder: Path) -> None:
    with WorkerProcess("--pace", "3,2,0.5") as worker:
        worker.ready()
        worker.send(MeasureLayers(config_json("llama"), Variant.FLOAT32, (1, 4), 16))
        measured = worker.expect(LayersMeasured).benchmark
        assert [time.layer_s >= least for time, least in zip(measured.decode, (0.005, 0.011), strict=True)] == [
            True
        ] * 2
        assert measured.prefill_layer_s_per_token >= 0.0005
        load(worker, folder)
        worker.send(start(num_new=3))
        worker.expect(SessionStarted)
        worker.send_frame(prompt_frame(0, PROMPT))
        sampled = [worker.expect(Sampled) for _ in range(3)]
        assert [token for m in sampled for token in m.tokens] == reference.generate(folder, [PROMPT], 3)[0]
        least_us = [6 * (3000 + 500 * len(PROMPT)), 6 * 5000, 6 * 5000]
        assert all(m.timing.compute_us >= least for m, least in zip(sampled, least_us, strict=True))


def test_loading_again_ends_the_sessions_of_the_old_slice(worker: WorkerProcess, folder: Path) -> None:
    load(worker, folder)
    worker.send(start())
    worker.expect(SessionStarted)
    worker.send(LoadSlice(str(folder), LayerRange(1, 3), Variant.FLOAT32, 2**20))
    assert worker.expect(SessionFailed).code == "slice_replaced"
    assert isinstance(worker.expect(LoadProgress), LoadProgress)
    assert worker.expect(SliceLoaded).weight_bytes < load(worker, folder).weight_bytes


def test_commands_that_fail_say_why_and_the_next_one_is_served(
    worker: WorkerProcess, folder: Path, tmp_path: Path
) -> None:
    layers = LayerRange(0, 6)
    assert failure(worker, MeasureLayers(config_json("bloom"), Variant.FLOAT32)) == "unsupported_architecture"
    assert failure(worker, PlanSlice(config_json("mamba"), layers, ())) == "unsupported_architecture"
    assert failure(worker, LoadSlice(str(tmp_path / "nowhere"), layers, Variant.FLOAT32, 2**20)) == "bad_config"
    (tmp_path / "config.json").write_text(config_json("llama"))
    assert failure(worker, LoadSlice(str(tmp_path), layers, Variant.FLOAT32, 2**20)) == "bad_weights"
    assert load(worker, folder).num_kv_tokens > 0


@pytest.mark.parametrize("kv_bytes", [0, 2**52])
def test_a_pool_that_cannot_be_had_is_out_of_memory(kv_bytes: int, worker: WorkerProcess, folder: Path) -> None:
    worker.send(LoadSlice(str(folder), LayerRange(0, 6), Variant.FLOAT32, kv_bytes))
    worker.expect(LoadProgress)
    assert worker.expect(CommandFailed).code == "out_of_memory"
    worker.send(start())
    assert worker.expect(SessionFailed).code == "no_slice"


def test_two_processes_form_a_chain(worker: WorkerProcess, folder: Path) -> None:
    with WorkerProcess() as tail:
        tail.ready()
        load(worker, folder, 0, 2)
        load(tail, folder, 2, 6)
        for stage, process in enumerate((worker, tail)):
            process.send(start(stage, 2))
            process.expect(SessionStarted)
        worker.send_frame(prompt_frame(0, PROMPT))
        tokens: list[int] = []
        while len(tokens) < 6:
            hidden = worker.expect(FramePacket)
            tail.send_bytes(hidden.data)
            if len(tokens) < 5:  # the head's next row goes out before the pool hears of the token
                back = tail.expect(FramePacket)
                assert (hidden.link, back.link) == (5, 5)
                worker.send_bytes(back.data)
            tokens += tail.expect(Sampled).tokens
        assert tokens == reference.generate(folder, [PROMPT], 6)[0]
        worker.send(EndSession(SID, 1))
        assert tail.finish()[0] == 0


def test_nothing_a_user_wrote_is_logged(folder: Path) -> None:
    with WorkerProcess("--log-level", "DEBUG") as process:
        process.ready()
        load(process, folder)
        process.send(start())
        process.expect(SessionStarted)
        process.send_frame(prompt_frame(0, PROMPT[:4], position=2))
        process.send_frame(prompt_frame(0, [*PROMPT[:4], 383_383]))
        assert process.expect(SessionFailed).code == "bad_token"
        _, output, errors = process.finish()
    assert output == ""
    assert "dropped" in errors
    assert "383383" not in errors and str(PROMPT)[1:12] not in errors
