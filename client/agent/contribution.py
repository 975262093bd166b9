"""One stay in the pool, from the first worker's start to the last one's end: the asyncio shell around the core."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import structs

from client.agent.commands import (
    Command,
    Download,
    EndWorker,
    FetchManifest,
    MeasureLinks,
    PassFrame,
    StartWorker,
    StopDownload,
    TellPool,
    TellWorker,
)
from client.agent.core import AgentCore
from client.agent.events import (
    Downloaded,
    Event,
    FetchFailed,
    FrameArrived,
    KeptTooLong,
    LookedAtWorkers,
    ManifestArrived,
    PeerLost,
    PoolLost,
    PoolSaid,
    RestartDue,
    RowsRefused,
    WorkerDied,
    WorkerSaid,
)
from client.agent.holding import KEEP_S, held_slices
from client.agent.identity import Identity
from client.agent.link import AT_THE_DOOR, Link, open_link
from client.agent.peers import LOOPBACK, PeerAddress, PeerCallbacks, Peers, is_loopback, may_take_neighbours
from client.agent.probing import PoolDistance, Prober
from client.agent.report import joined_status, offline_status
from client.agent.watchdog import LOOK_S
from client.agent.weights import Source, WeightStore
from client.agent.workers import Callbacks, Workers
from client.config import MAX_DISK_BYTES, MAX_SIZE_BYTES, NodeConfig
from client.errors import DiskFullError, JoinError, WeightsError
from client.status import Status
from protocol import PROTOCOL_VERSION
from protocol.backoff import doubled_s
from protocol.env import Access, ConnectionClosed, Env, NetworkError
from protocol.messages import Challenge, Heartbeat, Hello, Leaving, LinksMeasured
from protocol.pause import PoolDefaults
from protocol.values import DeviceId, DeviceSpec, Hop, NodeId
from protocol.version import app_version
from shell.tls import make_certificate

log = logging.getLogger(__name__)

RECONNECT_BASE_S = 0.5
MAX_RECONNECT_S = 30.0
MAX_SOON_S = 3.0
SOON_S = 60.0
"""So long after a connection was lost the pool is expected back at any moment: it is being started again, and people
wait for the layers that are loaded here."""
PROGRESS_EVERY_S = 0.2


class Contribution:
    """Runs until cancelled; then the pool is told, and no worker is left when `run` returns.

    `pool_defaults` is what the pool's operator wants of every machine, as last heard; `on_defaults` is called with it
    whenever it is heard. `has_joined`: this pool has had us before, so what only stands in the way is waited out."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        devices: tuple[DeviceSpec, ...],
        env: Env,
        changed: Callable[[], None],
        on_defaults: Callable[[PoolDefaults], None] | None = None,
        has_joined: bool = False,
    ) -> None:
        self._config = config
        self._env = env
        self._changed = changed
        self._on_defaults = on_defaults
        self.good_bye = "quit"
        """What the pool is told at the end: "quit", or why the machine pauses (protocol.pause.PauseReason)."""
        self.pool_defaults = PoolDefaults()
        self.has_joined = has_joined
        self.core = AgentCore(identity.node_id, devices)
        self._weights = WeightStore(
            config.data_dir / "weights", env, self._max_disk_bytes, lambda: self.core.weights_in_use
        )
        self._peers = Peers(identity.node_id, env, self._peer_callbacks())
        self._peer_address = PeerAddress()
        self._prober = Prober(self._peers, env)
        self._probing: asyncio.Task[None] | None = None
        self._pool_distance = PoolDistance(env)
        self._workers = Workers(worker_command(config), env, self._worker_callbacks())
        self._identity = identity
        self._node_id = identity.node_id
        self._link: Link | None = None
        self._weights_token = ""
        self._pool_name = ""
        self._waiting_for = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost_at_s = -math.inf
        self._keeping: asyncio.Task[None] | None = None
        """While the pool is away: lets its layers go in the end."""
        self._downloads: dict[DeviceId, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._is_leaving = False
        self._left: Link | None = None
        """The connection by which the pool was told that we go."""
        self._is_staying = False
        """That was taken back, and the pool is still to hear of it."""
        self._leaves_at_s: float | None = None
        """By the wall clock; None: nothing is being handed over."""

    async def run(self) -> None:
        """Serve the pool. Raises JoinError when it will never have us; any other trouble is waited out."""
        self._execute(self.core.start())
        self._spawn(self._watch_workers())
        try:
            await self._stay_connected()
        finally:
            await self._leave()

    async def hand_over(self, within_s: float) -> None:
        """Have the pool move what runs here, and serve on until nothing does or the time is up; then cancel `run`."""
        link = self._link
        if link is None or not self.core.switch.num_sessions:
            return
        link.tell(Leaving(self.good_bye, within_s))
        self._left, self._leaves_at_s = link, self._env.clock.wall() + within_s
        self._changed()
        try:
            async with asyncio.timeout(within_s):
                await self._until(lambda: not self.core.switch.num_sessions or self._link is not link)
        except TimeoutError:
            log.info("%d sessions are left behind", self.core.switch.num_sessions)
        finally:
            self._leaves_at_s = None

    def stay(self) -> None:
        """Take back that we go. The wire has no word for it: the pool forgets it with the connection. The next one
        tells what is loaded, and what still runs here begins anew there, behind its last token."""
        self.good_bye = "quit"
        link, self._left = self._left, None
        if link is not None and link is self._link:
            log.info("staying after all: joining the pool again")
            self._is_staying = True
            link.drop("staying")

    def status(self) -> Status:
        """The truth at this moment."""
        if self._link is None:
            return offline_status(self.core, self._pool_name, self._workers.pids, self._waiting_for)
        status = joined_status(self.core, self._pool_name, self._workers.pids)
        return structs.replace(status, leaves_at_s=self._leaves_at_s)

    async def _watch_workers(self) -> None:
        """Also while the pool is away: what is loaded then is still to be of use."""
        while True:
            await self._env.clock.sleep(LOOK_S)
            doubted = self.core.watchdog.doubted
            cpu_s = await self._env.run_blocking(self._cpu_s, doubted) if doubted else {}
            commands = self.core.handle(LookedAtWorkers(cpu_s), self._now())
            self._execute(commands)
            if commands:
                self._changed()

    def _cpu_s(self, device_ids: list[DeviceId]) -> dict[DeviceId, float | None]:
        return {device_id: self._workers.cpu_s(device_id) for device_id in device_ids}

    # ------------------------------------------------------------ the pool

    async def _stay_connected(self) -> None:
        num_failures = 0
        while True:
            self._tell_people(f"Connecting to {self._config.join_url}.")
            await self._until(lambda: self.core.is_ready and bool(self.core.usable_devices))
            try:
                self._link = await self._join()
                num_failures = 0
                await self._serve(self._link)
            except (NetworkError, ConnectionClosed) as error:
                num_failures += 1
                self._disconnected(error, self._away_sentence())
            except JoinError as error:
                if not self.has_joined or error.code not in AT_THE_DOOR:
                    raise
                num_failures += 1
                self._disconnected(error, str(error))
            await self._env.clock.sleep(self._backoff_s(num_failures))

    def _away_sentence(self) -> str:
        if self._is_staying:
            return "Joining the pool again."
        return f"The pool at {self._config.join_url} does not answer; trying again."

    async def _join(self) -> Link:
        await self._open_door()
        link = await open_link(self._config.node_socket_url, self._config.join, self._hello, self._env)
        self.has_joined, self._is_staying = True, False
        if self._keeping is not None:
            self._keeping.cancel()
        self._weights_token = link.welcome.weights_token
        return link

    async def _open_door(self) -> None:
        """Take neighbours' direct links, where volunteer and pool are ready for them; a door that does not open is
        no harm, as the relay reaches everybody. Raises NetworkError where there is no way to the pool at all."""
        url = self._config.join_url
        if not may_take_neighbours(self._config.direct, url):
            return
        host = LOOPBACK if is_loopback(url) else await self._env.network.local_host_towards(url)
        try:
            if not self._peers.takes_neighbours:
                certificate = None if host == LOOPBACK else await self._env.run_blocking(make_certificate, [host])
                await self._peers.listen(host, certificate)
        except NetworkError as error:
            log.warning("neighbours reach this node through the relay only: %s", error)
        self._peer_address = self._peers.address_at(host)

    def _disconnected(self, error: Exception, sentence: str) -> None:
        log.warning("not connected to the pool: %s", error)
        if self._link is not None:
            self._lost_at_s = self._env.clock.monotonic()
            self._keeping = self._spawn(self._keep_layers())
        self._link = None
        self._handle(PoolLost())
        self._tell_people(sentence)

    async def _keep_layers(self) -> None:
        await self._env.clock.sleep(KEEP_S)
        self._handle(KeptTooLong())

    def _tell_people(self, sentence: str) -> None:
        self._waiting_for = sentence
        self._changed()

    async def _serve(self, link: Link) -> None:
        self._pool_name = link.welcome.pool_name
        log.info("joined pool %s", self._pool_name)
        self._changed()
        beside = [asyncio.create_task(work) for work in (self._beat(link), self._pool_distance.watch(link.ping))]
        try:
            await link.run(lambda message: self._handle(PoolSaid(message)), self._frame_from_pool)
        finally:
            for task in beside:
                task.cancel()

    async def _beat(self, link: Link) -> None:
        while True:
            switch = self.core.switch
            counts = (switch.num_sessions, self.core.num_tokens, switch.num_refused)
            link.tell(Heartbeat(*counts, self.core.take_work(), self._pool_distance.take()))
            await self._env.clock.sleep(link.welcome.heartbeat_s)

    def _hello(self, challenge: Challenge) -> Hello:
        """Our answer to the pool's challenge; its wishes for every machine count from here on."""
        self.pool_defaults = challenge.defaults
        self.core.limit(challenge.defaults)
        if self._on_defaults is not None:
            self._on_defaults(challenge.defaults)
        address = self._peer_address
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            node_id=self._node_id,
            public_key=self._identity.public_key,
            signature=self._identity.hello_proof(challenge.nonce, self._config.audience),
            app_version=app_version(),
            name=self._config.name,
            devices=tuple(device.spec for device in self.core.devices.values()),
            peer_address=address.url,
            peer_ticket=self._peers.ticket if address.url else None,
            peer_fingerprint=address.fingerprint,
            invite=self._config.join.invite or None,
            held=held_slices(self.core.devices.values()),
        )

    def _max_disk_bytes(self) -> int:
        """The volunteer's limit for weights (or ours), or the pool's if that is less."""
        own, pools = self._config.max_disk_bytes, self.pool_defaults.max_disk_bytes
        return min(MAX_DISK_BYTES if own is None else own, MAX_SIZE_BYTES if pools is None else pools)

    def _source(self) -> Source:
        return Source(self._config.join_url, Access(self._config.join.pin, self._weights_token))

    def _backoff_s(self, num_failures: int) -> float:
        """Full jitter (M. Brooker, "Exponential Backoff And Jitter"): a thousand nodes must not come back at once."""
        is_expected = self._env.clock.monotonic() < self._lost_at_s + SOON_S
        limit_s = doubled_s(RECONNECT_BASE_S, num_failures, MAX_SOON_S if is_expected else MAX_RECONNECT_S)
        return self._env.random.uniform(RECONNECT_BASE_S / 2, limit_s)

    async def _leave(self) -> None:
        """Say good-bye and free everything at once. Workers are killed: only that surely frees a GPU's memory.

        What still comes in is dropped: the core would answer it with new downloads and new workers."""
        self._is_leaving = True
        link, self._link = self._link, None
        self._tell_people("Leaving the pool.")
        good_bye = [link.leave(Leaving(self.good_bye))] if link is not None else []
        for task in self._tasks:
            task.cancel()
        parts = [*good_bye, self._workers.kill_all(), self._peers.close()]
        results = await asyncio.gather(*parts, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in results:
            if error is not None:
                log.error("leaving did not go cleanly", exc_info=error)

    # ------------------------------------------------------------ events in

    def _handle(self, event: Event) -> None:
        if self._is_leaving:
            return
        self._execute(self.core.handle(event, self._now()))
        self._changed()
        self._woken.set()

    def _peer_callbacks(self) -> PeerCallbacks:
        return PeerCallbacks(self._frame_in, self._relay, self._peer_lost, self._rows_refused)

    def _worker_callbacks(self) -> Callbacks:
        return Callbacks(
            on_message=lambda device_id, message: self._handle(WorkerSaid(device_id, message)),
            on_frame=self._frame_out,
            on_exit=self._worker_exited,
        )

    def _worker_exited(self, device_id: DeviceId, status: int, reason: str) -> None:
        log.warning("worker %s ended with status %d", device_id, status)
        self._handle(WorkerDied(device_id, status, reason))

    def _frame_out(self, device_id: DeviceId, link: int, frame: bytes) -> None:
        hop = self.core.switch.neighbour(link)
        self.core.watchdog.heard(device_id, worked=True)
        self.core.switch.passed_on(device_id, frame, self._now())
        if hop.node_id == self._node_id:
            self._frame_in(frame, self._node_id)
        else:
            self._peers.send(hop, frame)

    def _frame_in(self, frame: bytes, sender: NodeId) -> None:
        self._execute(self.core.handle(FrameArrived(frame, sender), self._now()))

    def _frame_from_pool(self, frame: bytes) -> None:
        self._execute(self.core.handle(FrameArrived(frame, None), self._now()))

    def _relay(self, frame: bytes) -> None:
        if self._link is not None and not self._link.relay(frame):
            self._rows_refused(frame)

    def _rows_refused(self, frame: bytes) -> None:
        self._handle(RowsRefused(frame, is_leaving=True))

    def _peer_lost(self, node_id: NodeId) -> None:
        self._handle(PeerLost(node_id))

    def _now(self) -> float:
        return self._env.clock.monotonic()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._woken.clear()
            await self._woken.wait()

    # ------------------------------------------------------------ commands out

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case TellPool(message):
                    if self._link is not None:
                        self._link.tell(message)
                case TellWorker(device_id, message):
                    self._workers.tell(device_id, message)
                case PassFrame(device_id, frame):
                    if not self._workers.pass_frame(device_id, frame):
                        self._handle(RowsRefused(frame, is_leaving=False))
                case StartWorker(device_id, delay_s):
                    self._spawn(self._start_worker(device_id, delay_s))
                case EndWorker(device_id, reason):
                    self._workers.end(device_id, reason)
                case FetchManifest():
                    self._spawn(self._fetch_manifest(command))
                case Download(device_id):
                    self._downloads[device_id] = self._spawn(self._download(command))
                case StopDownload(device_id):
                    self._downloads.pop(device_id).cancel()
                case MeasureLinks(targets):
                    self._start_probing(targets)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the agent failed", exc_info=task.exception())

    async def _start_worker(self, device_id: DeviceId, delay_s: float) -> None:
        if delay_s:
            await self._env.clock.sleep(delay_s)
            self._handle(RestartDue(device_id))
        self._workers.start(device_id)

    def _start_probing(self, targets: tuple[Hop, ...]) -> None:
        if self._probing is not None:
            self._probing.cancel()
        self._probing = self._spawn(self._probe(targets))

    async def _probe(self, targets: tuple[Hop, ...]) -> None:
        measured = LinksMeasured(await self._prober.measure(targets))
        if self._link is not None:
            self._link.tell(measured)

    async def _fetch_manifest(self, command: FetchManifest) -> None:
        try:
            manifest = await self._weights.manifest(self._source(), command.job.manifest_hash)
        except WeightsError as error:
            self._handle(FetchFailed(command.device_id, command.job, error.code, str(error)))
            return
        self._handle(ManifestArrived(command.job.manifest_hash, manifest))

    async def _download(self, command: Download) -> None:
        device_id, job = command.device_id, command.job
        reported_s = 0.0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal reported_s
            now_s = self._env.clock.monotonic()
            if now_s - reported_s >= PROGRESS_EVERY_S:
                reported_s = now_s
                self._handle(Downloaded(device_id, job, done_bytes, total_bytes))

        try:
            folder = await self._weights.fetch(
                self._source(), job.manifest_hash, command.manifest, command.tensor_names, progress
            )
        except WeightsError as error:
            log.error("%s: %s", error.title, error)
            share = error.share if isinstance(error, DiskFullError) else None
            self._handle(FetchFailed(device_id, job, error.code, str(error), share))
            return
        self._handle(Downloaded(device_id, job, 1, 1, str(folder)))


def worker_command(config: NodeConfig) -> tuple[str, ...]:
    """The worker runs in its own interpreter: this one, or the one that the settings name."""
    pace = ("--pace", config.pace) if config.pace else ()
    return (config.worker_python or sys.executable, "-m", "client.runtime", *pace)
