"""The wiring: what is opened before the pool listens, and how the parts end together."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI

from coordinator import app
from coordinator.accounts import Accounts
from coordinator.certificate import TlsFiles
from coordinator.config import ConfigError, MachineNames, PlanSettings, PoolConfig, make_site
from coordinator.errors import PoolError
from coordinator.hub import Hub
from coordinator.models.catalog import Catalog
from coordinator.models.errors import ModelError
from coordinator.site_file import read_site
from coordinator.store import Store
from protocol.pause import PauseRules, PoolDefaults
from shell import AsyncioEnv
from shell.clock import SystemClock
from shell.randomness import SystemRandom
from shell.tls import make_certificate
from tests.fakes.asgi_client import AsgiClient
from tests.fakes.tiny_models import save_tiny
from tests.fakes.tiny_tokenizer import save_tokenizer

LIMIT_S = 60
MACHINE = MachineNames(("ada",), ("10.0.0.1",))


@pytest.fixture
def config(tmp_path: Path) -> PoolConfig:
    return PoolConfig(tmp_path, port=0)


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with closing(Store.open(tmp_path / "pool.sqlite3")) as store:
        yield Accounts(store, SystemRandom(), SystemClock().wall)


def never() -> None:
    pytest.fail("nothing failed, and yet the pool was told to stop")


def built(config: PoolConfig, accounts: Accounts, stop: Callable[[], None] = never) -> tuple[Hub, FastAPI]:
    """A pool without a model."""
    return app.build_pool(config, [], AsyncioEnv(), accounts, make_site(config, 8000, "", MACHINE), stop)


# ---------------------------------------------------------------- listening


def test_a_port_is_taken_before_the_slow_work_and_refused_by_number_when_in_use() -> None:
    with app.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            app.bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.77", "x" * 100])
def test_an_address_that_this_machine_does_not_have_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"Cannot listen on {host} port 0: .*--host or --port"):
        app.bind(host, 0)


def test_localhost_means_the_address_that_every_client_tries() -> None:
    with app.bind("localhost", 0) as listener:
        assert listener.family == socket.AF_INET


def test_the_machines_own_names_are_names_that_others_can_use() -> None:
    machine = app.machine_names()
    assert socket.gethostname() in machine.names
    assert all(name for name in machine.names)
    addresses = [ipaddress.ip_address(address) for address in machine.addresses]
    assert not any(address.is_loopback or address.is_unspecified for address in addresses)


# ---------------------------------------------------------------- certificates


def test_loopback_needs_no_certificate(config: PoolConfig) -> None:
    assert app.tls_files(config, MACHINE) is None


def test_a_pool_that_others_reach_has_its_own(config: PoolConfig) -> None:
    tls = app.tls_files(replace(config, host="0.0.0.0"), MACHINE)
    assert tls is not None
    assert tls.certificate == config.data_dir / "tls" / "certificate.pem"
    assert len(tls.pin) == 64


def test_a_given_one_is_taken_instead(config: PoolConfig, tmp_path: Path) -> None:
    made = make_certificate(["ada"])
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(made.certificate_pem)
    key.write_bytes(made.key_pem)
    given = replace(config, host="0.0.0.0", tls_certificate=certificate, tls_key=key)
    assert app.tls_files(given, MACHINE) == TlsFiles(certificate, key)
    assert not (tmp_path / "tls").exists()


def test_behind_a_proxy_the_pool_itself_speaks_plain_http(config: PoolConfig) -> None:
    proxied = replace(config, host="0.0.0.0", behind_proxy=True, public_url="https://pool.example.org")
    assert app.tls_files(proxied, MACHINE) is None


# ---------------------------------------------------------------- the server


def test_only_a_proxy_is_believed_who_the_client_is(config: PoolConfig) -> None:
    direct = app.server_settings(FastAPI(), config, None)
    assert not direct.proxy_headers
    proxied = app.server_settings(FastAPI(), replace(config, behind_proxy=True), None)
    assert proxied.proxy_headers
    assert proxied.forwarded_allow_ips == "127.0.0.1,::1"


def test_the_server_says_nothing_about_itself_and_ends_in_time(config: PoolConfig) -> None:
    settings = app.server_settings(FastAPI(), config, None)
    assert not settings.server_header
    assert settings.timeout_graceful_shutdown == 2 * app.GRACE_S == 6
    assert (settings.ws_ping_interval, settings.ws_ping_timeout) == (10.0, 10.0)
    assert not settings.is_ssl


def test_the_server_shows_the_certificate(config: PoolConfig) -> None:
    tls = app.tls_files(replace(config, host="0.0.0.0"), MACHINE)
    assert app.server_settings(FastAPI(), config, tls).is_ssl


# ---------------------------------------------------------------- the parts together


async def test_a_pool_answers_under_its_own_names(config: PoolConfig, accounts: Accounts) -> None:
    _, http = built(config, accounts)
    reply = await AsgiClient(http, "http://localhost:8000").get("/pool")
    assert (reply.status, reply.json()["name"]) == (200, config.pool_name)
    assert (await AsgiClient(http, "http://evil.test:8000").get("/pool")).status == 421


async def test_a_closed_pool_asks_who_is_there(config: PoolConfig, accounts: Accounts) -> None:
    _, key = accounts.make_key("laptop", None)
    client = AsgiClient(built(replace(config, is_open=False), accounts)[1])
    assert (await client.get("/v1/models")).status == 401
    assert (await client.get("/v1/models", {"authorization": f"Bearer {key}"})).status == 200


async def test_machines_are_told_the_pools_defaults(
    config: PoolConfig, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(app, "Hub", lambda *arguments: given.append(arguments[-2]) or Hub(*arguments))
    defaults = PoolDefaults(PauseRules(max_temperature_c=70), max_layers=3)
    built(replace(config, defaults=defaults), accounts)
    assert given == [defaults]


@pytest.mark.expected_logs("the hub failed")
async def test_a_hub_that_dies_takes_the_coordinator_with_it(config: PoolConfig, accounts: Accounts) -> None:
    stopped = asyncio.Event()
    hub, http = built(config, accounts, stopped.set)

    async def fail() -> None:
        raise RuntimeError("a defect")

    hub.run = fail  # type: ignore[method-assign]
    async with http.router.lifespan_context(http), asyncio.timeout(LIMIT_S):
        await stopped.wait()


async def test_a_hub_that_is_stopped_is_no_failure(config: PoolConfig, accounts: Accounts) -> None:
    hub, http = built(config, accounts)
    is_running = asyncio.Event()

    async def run() -> None:
        is_running.set()
        await asyncio.Event().wait()

    hub.run = run  # type: ignore[method-assign]
    async with http.router.lifespan_context(http), asyncio.timeout(LIMIT_S):
        await is_running.wait()


@pytest.mark.expected_logs("the hub failed")
def test_whoever_watches_the_process_learns_that_it_failed(
    config: PoolConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(hub: Hub) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Hub, "run", fail)
    with pytest.raises(PoolError) as caught:
        app.serve(config)
    assert caught.value.code == "hub_failed"
    shown = capsys.readouterr().out
    assert f"Chat page: {read_site(config.data_dir).base_url}/" in shown


def test_without_another_way_to_stop_the_process_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    app.terminate()
    assert raised == [signal.SIGTERM]


@pytest.mark.parametrize(("done", "total", "shown"), [(5, 5, "hashing: 0 of 0 MB"), (0, 0, "hashing"), (1, 5, "")])
def test_progress_is_one_line_per_step_where_there_is_no_terminal(
    done: int, total: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app.show_progress("hashing", done, total)
    assert capsys.readouterr().err.strip() == shown


@pytest.mark.expected_logs("is not served")
def test_a_model_whose_folder_is_gone_does_not_keep_the_others_from_being_served(tmp_path: Path) -> None:
    for name in ("stays", "goes"):
        folder = tmp_path / name
        save_tiny("llama", folder, vocab_size=384)
        save_tokenizer(folder, 384)
        Catalog(tmp_path / "pool" / "models").add(str(folder))
    shutil.rmtree(tmp_path / "goes")
    assert [model.name for model in app.open_models(PoolConfig(tmp_path / "pool"))] == ["stays"]


# ---------------------------------------------------------------- what must not keep a pool from starting


def tiny_chat(folder: Path) -> Path:
    save_tiny("qwen2", folder, vocab_size=384)
    save_tokenizer(folder, 384)
    return folder


@pytest.mark.expected_logs("is not served: tokenizer.json")
async def test_a_model_of_the_catalog_whose_tokenizer_broke_does_not_stop_the_others(
    config: PoolConfig, accounts: Accounts, tmp_path: Path
) -> None:
    catalog = Catalog(tmp_path / "models")
    models = [catalog.add(str(tiny_chat(tmp_path / name))) for name in ("good", "broken")]
    (tmp_path / "broken" / "tokenizer.json").write_text('{"a":')
    site = make_site(config, 8000, "", MACHINE)
    hub, _ = app.build_pool(config, models, AsyncioEnv(), accounts, site, never)
    assert set(hub.core.scheduler.state.models) == {models[0].manifest_hash}
    named = replace(config, models=("broken",))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        app.build_pool(named, models[1:], AsyncioEnv(), accounts, site, never)


def test_a_catalog_does_not_take_a_model_whose_tokenizer_does_not_load(tmp_path: Path) -> None:
    folder = tiny_chat(tmp_path / "broken")
    (folder / "tokenizer.json").write_text('{"a":')
    catalog = Catalog(tmp_path / "models")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        catalog.add(str(folder))
    assert catalog.names() == []


@pytest.mark.expected_logs("names the model 'typo', which the pool does not serve now")
async def test_the_operators_floors_and_diversity_reach_the_scheduler(config: PoolConfig, accounts: Accounts) -> None:
    planned = replace(config, plan=PlanSettings({"typo": 2}, keeps_apart=True))
    hub, _ = built(planned, accounts)
    assert hub.core.scheduler.config.keeps_apart
    hub, _ = built(config, accounts)
    assert not hub.core.scheduler.config.keeps_apart
