"""What others do with the GPUs, from drivers that tell everything, little, nonsense or nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.agent.gpu_use import GpuLook, GpuWatch, MemoryGrowth
from client.agent.policy import GpuReading
from tests.fakes.fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, FakeGpu, FakeNvml, FakeProcess

WORKER, GAME, BROWSER, HIDDEN = 100, 200, 300, 999
NAMES = {WORKER: "python3", GAME: "factorio", BROWSER: "firefox"}
UTILIZATION = "nvmlDeviceGetProcessUtilization"
GB = 10**9
PAUSED = GpuLook()
SERVING = GpuLook(is_idle=False, worker_pids=(WORKER,), serving=frozenset({"cuda:0"}))
SERVING_IDLE = replace(SERVING, is_idle=True)
LOADING = replace(SERVING, serving=frozenset())


class Programs:
    """Processes as NAMES has them; WORKER is ours."""

    def __init__(self) -> None:
        self.remembered: list[int] = []

    def remember(self, worker_pids: Collection[int]) -> None:
        self.remembered += worker_pids

    def is_own(self, pid: int) -> bool:
        return pid == WORKER

    def is_visible(self, pid: int) -> bool:
        return pid in NAMES

    def name(self, pid: int) -> str:
        return NAMES.get(pid, "")


def watch_of(*gpus: FakeGpu, fails: dict[str, int] | None = None) -> tuple[GpuWatch, FakeNvml]:
    nvml = FakeNvml(list(gpus), fails)
    watch = GpuWatch(nvml, Programs())  # type: ignore[arg-type]
    watch.open()
    return watch, nvml


def second_reading(gpu: FakeGpu, look: GpuLook = PAUSED) -> GpuReading:
    """The first one only finds out what time it is there."""
    watch, _ = watch_of(gpu)
    watch.read(look)
    (reading,) = watch.read(look)
    return reading


# ---------------------------------------------------------------- computing


def test_others_use_is_summed_and_the_busiest_is_named() -> None:
    reading = second_reading(FakeGpu(processes=[FakeProcess(GAME, sm=40), FakeProcess(BROWSER, sm=15)]))
    assert (reading.others_percent, reading.others_program) == (55, "factorio")


def test_our_own_use_is_not_others() -> None:
    gpu = FakeGpu(processes=[FakeProcess(WORKER, sm=90), FakeProcess(BROWSER, sm=3)])
    reading = second_reading(gpu, SERVING)
    assert (reading.others_percent, reading.others_program) == (3, "firefox")


def test_with_only_ours_at_work_others_use_is_nothing() -> None:
    assert second_reading(FakeGpu(processes=[FakeProcess(WORKER, sm=90)]), SERVING).others_percent == 0


def test_a_sum_is_at_most_everything() -> None:
    gpu = FakeGpu(processes=[FakeProcess(GAME, sm=80), FakeProcess(BROWSER, sm=70)])
    assert second_reading(gpu).others_percent == 100


def test_the_first_reading_which_is_an_average_over_long_ago_is_not_used() -> None:
    watch, _ = watch_of(FakeGpu(processes=[FakeProcess(GAME, sm=1, sm_of_buffer=90)]))
    assert [watch.read(PAUSED)[0].others_percent for _ in range(3)] == [None, 1, 1]


def test_after_the_first_reading_only_fresh_samples_are_asked_for() -> None:
    """The fake, as the driver, averages over its buffer for a caller that does not say what it has seen."""
    process = FakeProcess(GAME, sm=0, sm_of_buffer=90)
    watch, _ = watch_of(FakeGpu(processes=[process, FakeProcess(BROWSER, sm=1)]))
    watch.read(PAUSED)
    assert [watch.read(PAUSED)[0].others_percent for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("code", [0, 6])
def test_no_fresh_sample_means_that_nothing_ran(code: int) -> None:
    assert second_reading(FakeGpu(fails={UTILIZATION: code})).others_percent == 0


def test_values_that_cannot_be_are_taken_for_nothing() -> None:
    gpu = FakeGpu(processes=[FakeProcess(GAME, sm=4_294_967_295), FakeProcess(BROWSER, sm=7)])
    assert second_reading(gpu).others_percent == 7


def test_only_what_is_wanted_is_asked() -> None:
    watch, nvml = watch_of(FakeGpu(processes=[FakeProcess(GAME, sm=50, dec=5)]))
    readings = [watch.read(GpuLook(wants_use=False))[0] for _ in range(2)]
    assert {(reading.others_percent, reading.video_percent) for reading in readings} == {(None, None)}
    assert UTILIZATION not in nvml.calls
    assert readings[1].temperature_c == 45


# ---------------------------------------------------------------- video


def test_video_of_others_is_seen_and_named() -> None:
    reading = second_reading(FakeGpu(processes=[FakeProcess(BROWSER, sm=2, dec=11), FakeProcess(GAME, sm=60)]))
    assert (reading.video_percent, reading.video_program) == (11, "firefox")


def test_without_figures_per_process_the_decoder_is_others() -> None:
    reading = second_reading(FakeGpu(decoder=9, fails={UTILIZATION: NOT_SUPPORTED}))
    assert (reading.video_percent, reading.video_program) == (9, "")


# ---------------------------------------------------------------- drivers that do not say who


BLIND = [
    pytest.param(FakeGpu(utilization=60, fails={UTILIZATION: NOT_SUPPORTED}), id="not supported"),
    pytest.param(FakeGpu(utilization=60, fails={UTILIZATION: NO_PERMISSION}), id="not allowed"),
    pytest.param(FakeGpu(utilization=60, processes=[FakeProcess(HIDDEN, sm=55)]), id="processes of another container"),
    pytest.param(FakeGpu(utilization=60), id="all processes hidden"),
]


@pytest.mark.parametrize("gpu", BLIND)
def test_while_no_worker_computes_the_devices_use_is_others(gpu: FakeGpu) -> None:
    reading = second_reading(replace(gpu))
    assert (reading.others_percent, reading.others_program) == (60, "")


@pytest.mark.parametrize("gpu", BLIND)
def test_while_a_worker_computes_nobody_knows(gpu: FakeGpu) -> None:
    assert second_reading(replace(gpu), SERVING).others_percent is None


def test_just_after_a_worker_computed_its_use_is_not_taken_for_others() -> None:
    watch, nvml = watch_of(FakeGpu(utilization=60, fails={UTILIZATION: NOT_SUPPORTED}))
    watch.read(SERVING)
    percents = [watch.read(SERVING_IDLE)[0].others_percent for _ in range(4)]
    assert percents == [None, None, 60, 60]
    assert nvml.calls.count(UTILIZATION) == 1, "what is not supported is not asked again"


def test_a_driver_that_tells_nothing_at_all_leaves_everything_unknown() -> None:
    names = [name for name in dir(FakeNvml) if name.startswith("nvmlDeviceGet") and "Handle" not in name]
    reading = second_reading(FakeGpu(fails=dict.fromkeys(names, NOT_SUPPORTED)))
    assert reading == GpuReading(reading.device_id)


# ---------------------------------------------------------------- lost GPUs, no GPUs


@pytest.mark.expected_logs("GPU 0 cannot be watched")
def test_a_lost_gpu_is_unknown_costs_the_others_nothing_and_is_complained_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, nvml = watch_of(FakeGpu(), FakeGpu(temperature_c=50))
    watch.read(PAUSED)
    nvml.gpus[0].fails = dict.fromkeys([name for name in dir(FakeNvml) if name.startswith("nvmlDevice")], GPU_IS_LOST)
    for _ in range(5):
        lost, other = watch.read(PAUSED)
        assert (lost.free_bytes, lost.others_percent, lost.temperature_c) == (None, None, None)
        assert other.temperature_c == 50
    assert sum("cannot be watched" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.expected_logs("GPU 0 cannot be watched")
def test_a_gpu_that_answers_again_is_watched_again() -> None:
    watch, nvml = watch_of(FakeGpu(fails={"nvmlDeviceGetHandleByIndex": GPU_IS_LOST}))
    assert watch.read(PAUSED)[0].temperature_c is None
    nvml.gpus[0].fails = {}
    assert watch.read(PAUSED)[0].temperature_c == 45


@pytest.mark.parametrize("fails", [{"nvmlInit": 9}, {"nvmlDeviceGetCount": 999}])
def test_without_a_driver_no_gpu_is_watched(fails: dict[str, int]) -> None:
    watch, nvml = watch_of(FakeGpu(), fails=fails)
    assert watch.read(PAUSED) == ()
    assert watch.energy_j() is None
    watch.close()
    assert nvml.num_open == 0


def test_without_nvml_no_gpu_is_watched() -> None:
    watch = GpuWatch(None, Programs())  # type: ignore[arg-type]
    watch.open()
    assert watch.read(PAUSED) == ()
    watch.close()


def test_nvml_is_opened_once_and_closed_once() -> None:
    watch, nvml = watch_of(FakeGpu())
    watch.open()
    watch.read(PAUSED)
    assert nvml.num_open == 1
    watch.close()
    watch.close()
    assert (nvml.num_open, watch.read(PAUSED)) == (0, ())


def test_an_nvml_that_does_not_shut_down_is_no_trouble() -> None:
    watch, _ = watch_of(FakeGpu(), fails={"nvmlShutdown": 999})
    watch.close()


def test_energy_is_that_of_all_gpus_or_unknown() -> None:
    watch, nvml = watch_of(FakeGpu(energy_mj=1500), FakeGpu(energy_mj=2500))
    assert watch.energy_j() == 4.0
    nvml.gpus[1].fails = {"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}
    assert watch.energy_j() is None


# ---------------------------------------------------------------- memory


def test_free_memory_and_temperature_are_the_devices() -> None:
    reading = second_reading(FakeGpu(total_bytes=8 * GB, base_bytes=3 * GB, temperature_c=71))
    assert (reading.free_bytes, reading.temperature_c) == (5 * GB, 71)


def test_before_we_ever_served_growth_is_unknown() -> None:
    assert second_reading(FakeGpu()).others_growth_bytes is None


def test_growth_is_counted_from_when_our_layers_were_loaded_and_without_ours() -> None:
    worker, game = FakeProcess(WORKER, sm=50, memory_bytes=10 * GB), FakeProcess(GAME, sm=0, memory_bytes=0)
    watch, nvml = watch_of(FakeGpu(processes=[worker, game]))
    watch.read(LOADING)
    assert watch.read(SERVING)[0].others_growth_bytes == 0
    worker.memory_bytes = 11 * GB
    assert watch.read(SERVING)[0].others_growth_bytes == 0
    game.memory_bytes = 4 * GB
    reading = watch.read(SERVING)[0]
    assert (reading.others_growth_bytes, reading.growth_program) == (4 * GB, "factorio")
    nvml.gpus[0].processes = [game]
    assert watch.read(PAUSED)[0].others_growth_bytes == 4 * GB
    nvml.gpus[0].processes = []
    assert watch.read(PAUSED)[0].others_growth_bytes == 0


def test_a_program_that_draws_is_named_too() -> None:
    game = FakeProcess(GAME, memory_bytes=0, draws=True)
    watch, _ = watch_of(FakeGpu(processes=[FakeProcess(WORKER, memory_bytes=GB), game]))
    watch.read(SERVING)
    game.memory_bytes = 2 * GB
    assert watch.read(SERVING)[0].growth_program == "factorio"


@pytest.mark.parametrize("memory_bytes", [None, 10 * GB], ids=["Windows", "hidden"])
def test_where_ours_is_not_told_all_growth_is_others(memory_bytes: int | None) -> None:
    worker = FakeProcess(WORKER if memory_bytes is None else HIDDEN, memory_bytes=memory_bytes)
    watch, nvml = watch_of(FakeGpu(base_bytes=10 * GB, processes=[worker]))
    watch.read(SERVING)
    nvml.gpus[0].base_bytes += GB
    assert watch.read(SERVING)[0].others_growth_bytes == GB


def test_each_load_begins_anew() -> None:
    growth = MemoryGrowth()
    assert growth.see(10, None, is_serving=True, has_workers=True) == 0
    assert growth.see(15, None, is_serving=True, has_workers=True) == 5
    assert growth.see(5, None, is_serving=False, has_workers=False) == -5
    assert growth.see(12, None, is_serving=False, has_workers=True) is None
    assert growth.see(20, None, is_serving=True, has_workers=True) == 0


def test_a_driver_that_begins_to_tell_what_is_ours_begins_anew() -> None:
    growth = MemoryGrowth()
    assert growth.see(10, None, is_serving=True, has_workers=True) == 0
    assert growth.see(10, 8, is_serving=True, has_workers=True) == 0
    assert growth.see(13, 9, is_serving=True, has_workers=True) == 2


# ---------------------------------------------------------------- anything

codes = st.dictionaries(
    st.sampled_from([name for name in dir(FakeNvml) if name.startswith("nvmlDevice") and "Count" not in name]),
    st.sampled_from([0, 2, 3, 4, 6, 13, 15, 999]),
)
processes = st.builds(
    FakeProcess,
    pid=st.sampled_from([WORKER, GAME, BROWSER, HIDDEN, 0]),
    sm=st.integers(0, 2**32 - 1) | st.integers(0, 100),
    dec=st.integers(0, 2**32 - 1) | st.integers(0, 100),
    memory_bytes=st.none() | st.integers(0, 20 * GB),
    draws=st.booleans(),
)
moments = st.tuples(st.sampled_from([PAUSED, SERVING, SERVING_IDLE, LOADING]), st.lists(processes, max_size=4), codes)


@pytest.mark.allowed_logs("cannot be watched")
@given(st.lists(moments, max_size=6))
def test_whatever_a_driver_answers_readings_are_percentages_and_nothing_is_raised(
    day: list[tuple[GpuLook, list[FakeProcess], dict[str, int]]],
) -> None:
    watch, nvml = watch_of(FakeGpu())
    for look, running, fails in day:
        nvml.gpus[0].processes, nvml.gpus[0].fails = running, fails
        (reading,) = watch.read(look)
        for percent in (reading.others_percent, reading.video_percent):
            assert percent is None or 0 <= percent <= 100
        assert reading.others_program != NAMES[WORKER]
