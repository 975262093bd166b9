"""Models that come and go while the pool runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.api.errors import UnknownModel
from coordinator.api.model_desk import MAX_PAST_JOBS, MAX_WAITING_JOBS, DeskError, JobState, ModelDesk, ModelJob
from coordinator.errors import GenerationFailed
from coordinator.models.build import Progress
from coordinator.models.catalog import Catalog, Model
from coordinator.models.children import Children
from coordinator.models.errors import BrokenModelError, ModelNotFoundError
from shell import AsyncioEnv
from tests.coordinator.models.conftest import make_model, make_tokenizer
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import fake_model, served_as
from tests.fakes.fake_node import FakeNode
from tests.fakes.hub_driver import HubDriver, order, running_hub
from tests.fakes.virtual_env import VirtualEnv
from tests.fakes.virtual_loop import on_virtual_time

Work = Callable[[str, Progress], Model]


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]


def quick(name: str, progress: Progress) -> Model:
    progress("hashing", 5, 10)
    return fake_model({}, name, digest(name))


class FakeCatalog:
    def __init__(self, work: Work = quick) -> None:
        self.known: list[str] = []
        self.work = work

    def names(self) -> list[str]:
        return sorted(self.known)

    def add(self, spec: str, name: str | None, progress: Progress) -> Model:
        model = self.work(name or spec, progress)
        self.known.append(model.name)
        return model

    def open(self, name: str, progress: Progress) -> Model:
        if name not in self.known:
            raise ModelNotFoundError(name, "known models: none yet")
        return self.work(name, progress)

    def remove(self, name: str) -> None:
        self.known.remove(name)


class Gated(VirtualEnv):
    """Blocking work waits until the test lets it go on."""

    def __init__(self, env: VirtualEnv) -> None:
        self.__dict__.update(env.__dict__)
        self.may_go_on = asyncio.Event()

    async def run_blocking(self, function: Callable[..., Any], *args: object) -> Any:
        await self.may_go_on.wait()
        return await super().run_blocking(function, *args)


@asynccontextmanager
async def running_desk(
    *nodes: FakeNode, catalog: FakeCatalog | None = None, gated: bool = False
) -> AsyncIterator[tuple[ModelDesk, HubDriver, Any]]:
    async with running_hub(*nodes) as pool:
        env = pool.world.env("coordinator")
        env = Gated(env) if gated else env
        known = catalog or FakeCatalog()
        desk = ModelDesk(pool.hub, env, Path("unused"), lambda _: cast(Catalog, known), lambda m, _: served_as(m))
        yield desk, pool, env
        await desk.close()


async def ended(job: ModelJob) -> ModelJob:
    async with asyncio.timeout(600):
        while job.state is JobState.RUNNING:
            await asyncio.sleep(0.01)
    return job


# ---------------------------------------------------------------- what can be done


@on_virtual_time
async def test_a_model_that_was_added_is_served_by_everybody() -> None:
    async with running_desk() as (desk, pool, _):
        job = await ended(desk.add("/models/a", "a"))
        assert (job.spec, job.step, job.state, job.message) == ("/models/a", "done", JobState.DONE, "")
        assert desk.models["a"].manifest_hash == digest("a")
        assert desk.weights[digest("a")].name == "a"
        assert digest("a") in pool.hub.core.scheduler.state.models
        assert [(m.name, m.is_loaded, m.num_layers, m.size_bytes) for m in await desk.known()] == [("a", True, 8, 1024)]


@on_virtual_time
async def test_an_unloaded_model_is_known_and_can_be_loaded_again() -> None:
    async with running_desk() as (desk, pool, _):
        await ended(desk.add("a"))
        desk.unload("a")
        assert not desk.models
        assert not desk.weights
        assert digest("a") not in pool.hub.core.scheduler.state.models
        assert [(m.name, m.is_loaded, m.num_layers, m.size_bytes) for m in await desk.known()] == [
            ("a", False, 8, 1024)
        ]
        await ended(desk.load("a"))
        assert [m.is_loaded for m in await desk.known()] == [True]
        assert digest("a") in pool.hub.core.scheduler.state.models


@on_virtual_time
async def test_a_removed_model_is_forgotten_loaded_or_not() -> None:
    async with running_desk() as (desk, pool, _):
        for name in ("a", "b"):
            await ended(desk.add(name))
        desk.unload("b")
        await desk.remove("a")
        await desk.remove("b")
        assert await desk.known() == []
        assert set(pool.hub.core.scheduler.state.models) == {facts.DIGEST}


@on_virtual_time
async def test_a_model_of_the_catalog_that_was_never_opened_is_known_without_sizes() -> None:
    catalog = FakeCatalog()
    catalog.known.append("old")
    async with running_desk(catalog=catalog) as (desk, _, _):
        [known] = await desk.known()
        assert (known.name, known.is_loaded, known.num_layers, known.size_bytes) == ("old", False, 0, 0)


@on_virtual_time
async def test_another_model_of_the_same_name_takes_its_place() -> None:
    models = iter(["1", "2"])
    catalog = FakeCatalog(lambda name, _: fake_model({}, name, digest(next(models))))
    async with running_desk(catalog=catalog) as (desk, pool, _):
        await ended(desk.add("/one", "a"))
        await ended(desk.add("/two", "a"))
        assert list(desk.weights) == [digest("2")]
        assert set(pool.hub.core.scheduler.state.models) == {facts.DIGEST, digest("2")}


@on_virtual_time
async def test_the_same_model_once_more_disturbs_nobody() -> None:
    async with running_desk() as (desk, pool, _):
        await ended(desk.add("a"))
        before = pool.hub.core.scheduler.state.models[digest("a")]
        await ended(desk.add("a"))
        assert pool.hub.core.scheduler.state.models[digest("a")] is before


@on_virtual_time
async def test_an_answer_that_runs_ends_with_a_sentence_when_its_model_is_unloaded() -> None:
    async with running_desk(FakeNode(1)) as (desk, pool, _):
        model = fake_model({}, "tiny", facts.DIGEST)
        desk.models["tiny"], desk.weights[facts.DIGEST] = served_as(model), model
        answer = pool.hub.generate(order(num_tokens=900))
        for _ in range(3):
            await anext(answer)
        desk.unload("tiny")
        with pytest.raises(GenerationFailed) as caught:
            while True:
                await anext(answer)
        assert caught.value.code == "model_unloaded"
        assert caught.value.message


@on_virtual_time
async def test_a_model_that_is_there_from_the_start_is_put() -> None:
    async with running_desk() as (desk, pool, _):
        desk.put(fake_model({}, "a", digest("a")))
        assert digest("a") in pool.hub.core.scheduler.state.models
        assert not desk.jobs()


# ---------------------------------------------------------------- what goes wrong


def fails(error: Exception) -> Work:
    def work(name: str, progress: Progress) -> Model:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenModelError("a.safetensors", "it is cut off"), "a.safetensors is damaged or incomplete: it is cut off"),
        (PermissionError(13, "Permission denied", "/secret/folder/x"), "Permission denied: 'x'"),
        (OSError("odd"), "OSError: '?'"),
    ],
)
@on_virtual_time
async def test_a_job_that_fails_says_why_in_one_sentence_and_the_next_one_works(error: Exception, message: str) -> None:
    catalog = FakeCatalog(fails(error))
    async with running_desk(catalog=catalog) as (desk, _, _):
        job = await ended(desk.add("a"))
        assert (job.state, job.message) == (JobState.FAILED, message)
        assert not desk.models
        catalog.work = quick
        assert (await ended(desk.add("a"))).state is JobState.DONE


@pytest.mark.expected_logs("failed")
@on_virtual_time
async def test_a_defect_of_ours_is_in_the_log_and_the_next_job_works() -> None:
    catalog = FakeCatalog(fails(ZeroDivisionError("a detail")))
    async with running_desk(catalog=catalog) as (desk, _, _):
        job = await ended(desk.add("a"))
        assert job.state is JobState.FAILED
        assert "detail" not in job.message.replace("details", "")
        catalog.work = quick
        assert (await ended(desk.add("a"))).state is JobState.DONE


@on_virtual_time
async def test_what_is_not_there_is_neither_loaded_nor_unloaded_nor_removed() -> None:
    async with running_desk() as (desk, _, _):
        with pytest.raises(UnknownModel):
            desk.unload("a")
        with pytest.raises(UnknownModel):
            await desk.remove("a")
        assert "not found" in (await ended(desk.load("a"))).message


@on_virtual_time
async def test_what_is_loaded_is_not_loaded_again() -> None:
    async with running_desk() as (desk, _, _):
        await ended(desk.add("a"))
        with pytest.raises(DeskError) as caught:
            desk.load("a")
        assert (caught.value.status, caught.value.code) == (409, "model_loaded")


# ---------------------------------------------------------------- one at a time


@on_virtual_time
async def test_jobs_wait_for_each_other_and_nothing_is_removed_meanwhile() -> None:
    async with running_desk(gated=True) as (desk, pool, env):
        first, second = desk.add("a"), desk.add("b")
        await pool.until(lambda: first.step == "checking")
        assert second.step == "waiting"
        with pytest.raises(DeskError) as caught:
            await desk.remove("a")
        assert (caught.value.status, caught.value.code) == (409, "desk_busy")
        env.may_go_on.set()
        await ended(second)
        assert first.state is JobState.DONE
        assert [job.spec for job in desk.jobs()] == ["b", "a"]


@on_virtual_time
async def test_no_more_jobs_wait_than_the_limit() -> None:
    async with running_desk(gated=True) as (desk, _, env):
        jobs = [desk.add(str(number)) for number in range(MAX_WAITING_JOBS + 1)]
        with pytest.raises(DeskError) as caught:
            desk.add("one more")
        assert caught.value.code == "desk_busy"
        env.may_go_on.set()
        assert {(await ended(job)).state for job in jobs} == {JobState.DONE}
        await ended(desk.add("one more"))


@on_virtual_time
async def test_old_jobs_are_forgotten() -> None:
    async with running_desk() as (desk, _, _):
        for number in range(MAX_PAST_JOBS + 3):
            await ended(desk.add(f"m{number}"))
        assert len(desk.jobs()) == MAX_PAST_JOBS
        assert desk.jobs()[0].spec == f"m{MAX_PAST_JOBS + 2}"


@on_virtual_time
async def test_a_closed_desk_takes_nothing_and_what_waited_has_failed() -> None:
    async with running_desk(gated=True) as (desk, pool, _):
        job = desk.add("a")
        await pool.until(lambda: job.step == "checking")
        await desk.close()
        assert (job.state, job.message) == (JobState.FAILED, "the coordinator was stopped before this was done")
        with pytest.raises(DeskError):
            desk.add("b")
        assert not desk.models


# ---------------------------------------------------------------- real threads, real time


async def test_a_conversion_is_ended_with_the_desk_and_so_is_hashing() -> None:
    env, begun, gone_on = AsyncioEnv(), threading.Event(), threading.Event()
    stopped: list[Children] = []

    class Waits(Children):
        def stop(self) -> None:
            stopped.append(self)
            gone_on.set()
            super().stop()

    def long(name: str, progress: Progress) -> Model:
        begun.set()
        gone_on.wait(60)
        progress("hashing", 1, 2)
        raise AssertionError("a closed desk stops its worker at the next step")

    catalog = FakeCatalog(long)
    hub = SimpleNamespace(add_model=lambda *_: None, remove_model=lambda _: None)
    desk = ModelDesk(cast(Any, hub), env, Path("unused"), lambda _: cast(Catalog, catalog), lambda m, _: served_as(m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.api.model_desk.Children", Waits)
        job = desk.add("a")
        assert await asyncio.to_thread(begun.wait, 60)
        await desk.close()
    assert len(stopped) == 1
    assert job.state is JobState.FAILED
    await env.close()


async def test_a_real_folder_is_added_by_the_real_catalog(tmp_path: Path) -> None:
    env, folder = AsyncioEnv(), tmp_path / "tiny"
    folder.mkdir()
    make_model(folder)
    make_tokenizer(folder)
    hub = SimpleNamespace(added=[], add_model=lambda facts, floor: hub.added.append((facts.name, floor)))
    desk = ModelDesk(cast(Any, hub), env, tmp_path / "catalog", replicas={"owner/tiny": 3})
    job = desk.add(str(folder), "owner/tiny")
    await asyncio.wait(set(desk._tasks))
    assert (job.state, job.message) == (JobState.DONE, "")
    assert [known.name for known in await desk.known()] == ["owner/tiny"]
    assert desk.models["owner/tiny"].tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert hub.added == [("owner/tiny", 3)], "with the operator's floor"
    job = desk.add(str(tmp_path / "nothing"))
    await asyncio.wait(set(desk._tasks))
    assert "not found" in job.message
    await desk.close()
    await env.close()
