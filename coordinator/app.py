"""Wires the coordinator's parts together; the only file that knows every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from coordinator.accounts import Accounts
from coordinator.administration import start_tokens
from coordinator.announcement import StartTokens, announcement
from coordinator.api.http import Lifespan, build_http
from coordinator.api.model_desk import ModelDesk
from coordinator.api.services import Services
from coordinator.certificate import TlsFiles, given_certificate, own_certificate
from coordinator.config import (
    DATABASE_NAME,
    ConfigError,
    MachineNames,
    PoolConfig,
    Site,
    check_config,
    is_loopback,
    make_site,
    names_of,
)
from coordinator.core import PoolCore
from coordinator.errors import PoolError
from coordinator.folder_lock import locked
from coordinator.gate import AccountsGate
from coordinator.hub import Hub
from coordinator.journal import JOURNAL_NAME, Journal, JournalLog
from coordinator.models.catalog import Catalog, Model
from coordinator.models.errors import ModelError
from coordinator.open_files import raise_open_files
from coordinator.scheduler import Scheduler
from coordinator.scheduler.policy import SchedulerConfig
from coordinator.server_protocol import WebsocketProtocol, guarded_http
from coordinator.site_file import write_site
from coordinator.store import Store
from coordinator.token_log import MemoryTokenLog
from protocol.env import Env
from protocol.frames import FrameLimits
from protocol.version import app_version
from shell import AsyncioEnv
from shell.clock import SystemClock
from shell.randomness import SystemRandom

log = logging.getLogger(__name__)

MAX_WEBSOCKET_MESSAGE_BYTES = FrameLimits().max_payload_bytes + 2**20
WEBSOCKET_PING_S = 10.0
GRACE_S = 3
"""How long running answers may go on once the pool is told to stop."""
TRUSTED_PROXIES = "127.0.0.1,::1"
"""Whose X-Forwarded-For is believed. A proxy elsewhere is taken for the client, which costs no safety."""
FOREIGN_ADDRESSES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses (RFC 5737, RFC 3849): nothing is ever sent to them."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a pool needs that was checked and opened before it listens."""

    config: PoolConfig
    site: Site
    tls: TlsFiles | None
    models: list[Model]
    accounts: Accounts
    tokens: StartTokens
    journal: Journal


def serve(config: PoolConfig, *, with_operator_link: bool = False) -> None:
    """Run a pool until Ctrl-C. Raises PoolError or ModelError, before anything listens, for what cannot work."""
    check_config(config)
    raise_open_files()
    machine = MachineNames() if is_loopback(config.host) else machine_names()
    with locked(config.data_dir):
        _serve_folder(config, machine, with_operator_link)


def _serve_folder(config: PoolConfig, machine: MachineNames, with_operator_link: bool) -> None:
    tls = tls_files(config, machine)
    with (
        bind(config.host, config.port) as listener,
        contextlib.closing(Store.open(config.data_dir / DATABASE_NAME)) as store,
        contextlib.closing(Journal.open(config.data_dir / JOURNAL_NAME)) as journal,
    ):
        site = make_site(config, listener.getsockname()[1], tls.pin if tls else "", machine)
        accounts = Accounts(store, SystemRandom(), SystemClock().wall)
        models = open_models(config)
        # Secrets are for a person at a terminal; a service's output goes into the system's log.
        shows_secrets = with_operator_link or sys.stdout.isatty()
        tokens = start_tokens(accounts, site, with_operator_link=with_operator_link) if shows_secrets else StartTokens()
        write_site(config.data_dir, site)
        asyncio.run(_serve(Opened(config, site, tls, models, accounts, tokens, journal), listener))


def tls_files(config: PoolConfig, machine: MachineNames) -> TlsFiles | None:
    """The certificate to show: the given one, else the pool's own; None for plain HTTP. Raises ConfigError."""
    now_s = SystemClock().wall()
    if config.tls_certificate is not None and config.tls_key is not None:
        return given_certificate(config.tls_certificate, config.tls_key, now_s)
    return own_certificate(config.data_dir, names_of(config, machine), now_s) if config.speaks_tls else None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the slow work begins. Raises ConfigError when the port is in use."""
    listener = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)  # localhost is both
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":  # every address means those of IPv4 too (RFC 3493, section 5.3)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or "it is no address"
        sentence = f"Cannot listen on {host} port {port}: {reason}. Choose another with --host or --port."
        raise ConfigError(sentence) from None
    return listener


def machine_names() -> MachineNames:
    """What others may call this machine: its names, also the one of multicast DNS, and its addresses."""
    name = socket.gethostname()
    short = name.partition(".")[0]
    return MachineNames(
        names=tuple(dict.fromkeys((name, socket.getfqdn(name), short, f"{short}.local"))),
        addresses=tuple(dict.fromkeys(filter(_is_shareable, (*_addresses_outwards(), *_addresses_of(name))))),
    )


def _addresses_outwards() -> Iterable[str]:
    """The addresses that connections to elsewhere leave from. Connecting a datagram socket sends nothing."""
    for family, foreign in FOREIGN_ADDRESSES:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:  # no route: no such address
            probe.connect((foreign, 9))
            yield probe.getsockname()[0]


def _addresses_of(name: str) -> Iterable[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:  # a machine whose name nobody knows
        return []
    return [str(address[0]) for *_, address in found]


def _is_shareable(address: str) -> bool:
    """Whether it means this machine elsewhere too."""
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def open_models(config: PoolConfig) -> list[Model]:
    """The models that the settings name (raises ModelError), or those of the catalog that can be opened: one whose
    folder is gone must not keep the others from being served."""
    catalog = Catalog(config.data_dir / "models")
    if config.models:
        return [catalog.add(spec, progress=show_progress) for spec in config.models]
    opened = (_opened_or_none(catalog, name) for name in catalog.names())
    return [model for model in opened if model is not None]


def _opened_or_none(catalog: Catalog, name: str) -> Model | None:
    try:
        return catalog.open(name, progress=show_progress)
    except ModelError as error:
        log.error("the model %s is not served: %s", name, error)
        return None


def show_progress(step: str, done_bytes: int, total_bytes: int) -> None:
    """One line that is rewritten on a terminal, and a line per step elsewhere."""
    amount = f": {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB" if total_bytes else ""
    ended = done_bytes >= total_bytes
    if sys.stderr.isatty():
        print(f"\r  {step}{amount}   ", end="\n" if ended else "", flush=True, file=sys.stderr)  # noqa: T201
    elif ended:
        print(f"  {step}{amount}", flush=True, file=sys.stderr)  # noqa: T201


def terminate() -> None:
    """End this process as whoever watches it would."""
    signal.raise_signal(signal.SIGTERM)


def build_pool(
    config: PoolConfig,
    models: list[Model],
    env: Env,
    accounts: Accounts,
    site: Site,
    stop: Callable[[], None] = terminate,
    scheduler: Scheduler | None = None,
    journal: Journal | None = None,
) -> tuple[Hub, FastAPI]:
    """The hub and the HTTP application of a pool that serves these models. `stop` is called if the hub dies;
    `scheduler` may have a policy of its own (benchmarks); without a journal answers do not survive a restart."""
    gate = AccountsGate(accounts, env, config.is_open)
    core = PoolCore(scheduler or Scheduler(SchedulerConfig(keeps_apart=config.plan.keeps_apart)))
    token_log = MemoryTokenLog() if journal is None else JournalLog(journal, env)
    hub = Hub(core, token_log, env, config.pool_name, gate, config.defaults, config.answers)
    desk = ModelDesk(hub, env, config.data_dir / "models", replicas=config.plan.replicas)
    for model in models:
        _put(desk, model, is_wanted=bool(config.models))
    _note_unknown_floors(config, desk)
    if journal is not None:
        hub.restore(journal.take_kept())
    services = Services(hub, desk, accounts, site, env)
    return hub, build_http(services, _lifespan(hub, stop), app_version())


def _note_unknown_floors(config: PoolConfig, desk: ModelDesk) -> None:
    """A floor may come before its model; but it may also be a slip of the pen."""
    for name in sorted(config.plan.replicas.keys() - desk.models.keys()):
        log.warning("pool.toml: [plan] replicas names the model %r, which the pool does not serve now", name)


def _put(desk: ModelDesk, model: Model, *, is_wanted: bool) -> None:
    """Raises ModelError for one that the settings name. One of the catalog's must not keep the pool from starting."""
    try:
        desk.put(model)
    except ModelError as error:
        if is_wanted:
            raise
        log.error("the model %s is not served: %s", model.name, error)


def _lifespan(hub: Hub, stop: Callable[[], None]) -> Lifespan:
    def stop_if_it_failed(running: asyncio.Task[None]) -> None:
        """A pool whose hub has died answers nobody: better that it ends, and is started again by whoever watches."""
        if not running.cancelled() and running.exception() is not None:
            log.critical("the hub failed; the coordinator stops", exc_info=running.exception())
            stop()

    @asynccontextmanager
    async def lifespan(http: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(hub.run())
        running.add_done_callback(stop_if_it_failed)
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})
            await hub.flush()

    return lifespan


def server_settings(http: FastAPI, config: PoolConfig, tls: TlsFiles | None) -> uvicorn.Config:
    """h11, because it is strict and written in Python: who serves a laboratory does not need the faster parser."""
    return uvicorn.Config(
        http,
        http=guarded_http(),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws=WebsocketProtocol,
        ws_max_size=MAX_WEBSOCKET_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=WEBSOCKET_PING_S,
        ws_ping_timeout=WEBSOCKET_PING_S,
        timeout_graceful_shutdown=2 * GRACE_S,
        proxy_headers=config.behind_proxy,
        forwarded_allow_ips=TRUSTED_PROXIES if config.behind_proxy else "",
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )


class AnnouncedServer(uvicorn.Server):
    """Says that it is there once it is: from then on Ctrl-C is heard too. Ends what still runs by hanging up, as a
    client would: uvicorn cancels it, which each request then reports as an error of ours."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._announcement, flush=True)  # noqa: T201 - what it is for

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(super().shutdown(sockets))
        await asyncio.wait({ending}, timeout=GRACE_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if running := set(self.server_state.tasks):
            await asyncio.wait(running, timeout=GRACE_S)
        await ending
        if self.force_exit:  # uvicorn leaves this out after a second Ctrl-C: children would have to wait for the loop
            await self.lifespan.shutdown()


async def _serve(opened: Opened, listener: socket.socket) -> None:
    """Raises PoolError when the hub failed: whatever watches this process (systemd) then starts it again."""
    has_failed = False

    def stop() -> None:
        nonlocal has_failed
        has_failed = server.should_exit = True

    env = AsyncioEnv()
    config, accounts = opened.config, opened.accounts
    hub, http = build_pool(config, opened.models, env, accounts, opened.site, stop, journal=opened.journal)
    served = hub.core.scheduler.state.models
    names = [model.name for model in opened.models if model.manifest_hash in served]
    text = announcement(opened.site, names, opened.tokens)
    server = AnnouncedServer(server_settings(http, opened.config, opened.tls), text)
    try:
        await server.serve(sockets=[listener])
    finally:
        await env.close()
    if has_failed:
        raise PoolError("hub_failed", "The pool stopped because of a defect of its own; the log has the details.")
