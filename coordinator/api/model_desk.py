"""Adds, loads, unloads and removes models while the pool runs.

The desk holds what is served: `models` (what the API knows, by name) and `weights` (what the mirror hands out, by
manifest). Slow work is done off the event loop, one job after the other; its children are killed at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coordinator.api.chat import ServedModel
from coordinator.api.errors import ApiError, UnknownModel, shown
from coordinator.api.served import model_facts, served_model
from coordinator.hub import Hub
from coordinator.models.build import Progress
from coordinator.models.catalog import Catalog, Model
from coordinator.models.children import Children, StoppedError
from coordinator.models.errors import ModelError
from protocol.env import Env

log = logging.getLogger(__name__)

MAX_WAITING_JOBS = 8
MAX_PAST_JOBS = 20
JOB_ID_BYTES = 8


class JobState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class ModelJob:
    """One piece of slow work, as the operator sees it. `message` says why it failed."""

    job_id: str
    spec: str
    """What was asked for: a folder, a .gguf file, a hub id, or the name of a model that is known."""
    step: str = "waiting"
    done_bytes: int = 0
    total_bytes: int = 0
    state: JobState = JobState.RUNNING
    message: str = ""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of the catalog. Its sizes are 0 until it was opened once."""

    name: str
    is_loaded: bool
    num_layers: int = 0
    size_bytes: int = 0


class DeskError(ApiError):
    """The operator asks for what cannot be done now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(409, code, message)


MakeCatalog = Callable[[Children], Catalog]
MakeServed = Callable[[Model, int], ServedModel]


class ModelDesk:
    """The models of one pool. `folder` is the catalog's; `replicas` are the operator's floors, by name."""

    def __init__(
        self,
        hub: Hub,
        env: Env,
        folder: Path,
        make_catalog: MakeCatalog | None = None,
        make_served: MakeServed = served_model,
        replicas: Mapping[str, int] | None = None,
    ) -> None:
        self._replicas = replicas or {}
        self.models: dict[str, ServedModel] = {}
        self.weights: dict[str, Model] = {}
        self._hub = hub
        self._env = env
        self._catalog = make_catalog or (lambda c: Catalog(folder, fetch=c.fetch, convert=c.convert))
        self._make_served = make_served
        self._seen: dict[str, KnownModel] = {}
        self._jobs: deque[ModelJob] = deque()
        self._tasks: dict[asyncio.Task[None], ModelJob] = {}
        self._turn = asyncio.Lock()
        self._children = Children(_no_progress)
        self._is_closed = False

    # ------------------------------------------------------------ what there is

    async def known(self) -> list[KnownModel]:
        """All models of the catalog and those that are served, by name."""
        names = await self._env.run_blocking(lambda: self._catalog(Children(_no_progress)).names())
        every = sorted({*names, *self.models})
        return [self._known(name) for name in every]

    def jobs(self) -> list[ModelJob]:
        """The latest jobs, newest first."""
        return list(reversed(self._jobs))

    # ------------------------------------------------------------ what can be done

    def put(self, model: Model) -> None:
        """Serve this model, at once; reads its tokenizer, so only while nothing is served yet. Raises ModelError."""
        self._serve(model, self._make_served(model, self._now()))

    def add(self, spec: str, name: str | None = None) -> ModelJob:
        """Begin to add a model and to serve it. Raises DeskError when too many jobs wait."""
        return self._begin(spec, lambda catalog, progress: catalog.add(spec, name, progress))

    def load(self, name: str) -> ModelJob:
        """Begin to serve a model of the catalog again. Raises DeskError."""
        if name in self.models:
            raise DeskError("model_loaded", f"The model {shown(name)} is loaded already.")
        return self._begin(name, lambda catalog, progress: catalog.open(name, progress))

    def unload(self, name: str) -> None:
        """Serve it no more: new requests do not find it, running answers end with a sentence. Raises UnknownModel."""
        served = self.models.pop(name, None)
        if served is None:
            raise UnknownModel(name, sorted(self.models))
        self._seen[name] = KnownModel(name, False, served.num_layers, self._known_size(served.manifest_hash))
        self.weights.pop(served.manifest_hash, None)
        self._hub.remove_model(served.manifest_hash)

    async def remove(self, name: str) -> None:
        """Unload it and forget it; its files stay. Raises UnknownModel, and DeskError while a job works on models."""
        if self._turn.locked():
            raise DeskError("desk_busy", "A model is being worked on; remove this one when that is done.")
        async with self._turn:
            catalog = self._catalog(Children(_no_progress))
            names = await self._env.run_blocking(catalog.names)
            if name not in names and name not in self.models:
                raise UnknownModel(name, sorted({*names, *self.models}))
            if name in self.models:
                self.unload(name)
            self._seen.pop(name, None)
            await self._env.run_blocking(catalog.remove, name)

    async def close(self) -> None:
        """End what runs, conversions and downloads included. Nothing can be begun any more."""
        self._is_closed = True
        self._children.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ jobs

    def _begin(self, spec: str, work: Callable[[Catalog, Progress], Model]) -> ModelJob:
        if self._is_closed or len(self._tasks) > MAX_WAITING_JOBS:
            raise DeskError("desk_busy", "Too many models are waiting to be worked on; try again when one is done.")
        job = ModelJob(self._env.random.token_hex(JOB_ID_BYTES), spec)
        self._jobs.append(job)
        while len(self._jobs) > MAX_PAST_JOBS:
            self._jobs.popleft()
        task = asyncio.create_task(self._run(job, work))
        self._tasks[task] = job
        task.add_done_callback(self._tasks.pop)
        return job

    async def _run(self, job: ModelJob, work: Callable[[Catalog, Progress], Model]) -> None:
        try:
            async with self._turn:
                await self._work(job, work)
        except asyncio.CancelledError:
            _fail(job, str(StoppedError()))
            raise
        except (ModelError, ApiError) as error:
            _fail(job, str(error))
        except OSError as error:
            _fail(job, f"{error.strerror or type(error).__name__}: {shown(Path(str(error.filename or '?')).name)}")
        except Exception:  # the readers of foreign files raise anything; the jobs behind this one must go on
            log.exception("job %s failed", job.job_id)
            _fail(job, "Something went wrong inside the coordinator; its log has the details.")

    async def _work(self, job: ModelJob, work: Callable[[Catalog, Progress], Model]) -> None:
        progress = self._progress_of(job)
        self._children = Children(progress)
        job.step = "checking"
        model = await self._env.run_blocking(work, self._catalog(self._children), progress)
        job.step, job.done_bytes, job.total_bytes = "reading the tokenizer", 0, 0
        served = await self._env.run_blocking(self._make_served, model, self._now())
        self._serve(model, served)
        job.step, job.state = "done", JobState.DONE

    def _progress_of(self, job: ModelJob) -> Progress:
        """Called from other threads, which it also ends when the desk is closed."""

        def progress(step: str, done_bytes: int, total_bytes: int) -> None:
            if self._is_closed:
                raise StoppedError
            job.step, job.done_bytes, job.total_bytes = step, done_bytes, total_bytes

        return progress

    # ------------------------------------------------------------ what is served

    def _serve(self, model: Model, served: ServedModel) -> None:
        before = self.models.get(model.name)
        if before is not None and before.manifest_hash != model.manifest_hash:
            self.unload(model.name)
        if model.manifest_hash not in self.weights:
            self._hub.add_model(model_facts(model), self._replicas.get(model.name, 1))
        self.models[model.name] = served
        self.weights[model.manifest_hash] = model
        self._seen.pop(model.name, None)

    def _known(self, name: str) -> KnownModel:
        served = self.models.get(name)
        if served is None:
            return self._seen.get(name) or KnownModel(name, is_loaded=False)
        return KnownModel(name, True, served.num_layers, self._known_size(served.manifest_hash))

    def _known_size(self, manifest_hash: str) -> int:
        model = self.weights.get(manifest_hash)
        return sum(file.size_bytes for file in model.manifest.files) if model else 0

    def _now(self) -> int:
        return int(self._env.clock.wall())


def _fail(job: ModelJob, message: str) -> None:
    job.state, job.message = JobState.FAILED, message


def _no_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    """For what is over at once."""
