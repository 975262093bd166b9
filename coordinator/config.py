"""The coordinator's settings: read once at the edge, frozen, each default written here and nowhere else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import appdirs

from coordinator.answer_times import AnswerTimes
from coordinator.errors import PoolError
from protocol.join_link import JoinLink, JoinLinkError, format_browser_link, format_join_link, parse_join_link
from protocol.pause import PoolDefaults

DATABASE_NAME = "pool.sqlite3"
DEFAULT_POOL_NAME = "DecentLLM pool"
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"[\w.:%-]{1,253}", re.ASCII)
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
"""RFC 1123, section 2.1: what a certificate and a Host header can name."""


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the operator decides about the plan of who holds which layers."""

    replicas: Mapping[str, int] = field(default_factory=dict)
    """By model name: so many whole copies before another model gets more than its own; 1 for models not named."""
    keeps_apart: bool = False
    """Neighbouring stages on different machines, and requests of one tenant over different chains."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """What the operator decided: the command line over pool.toml over these defaults."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    pool_name: str = DEFAULT_POOL_NAME
    models: tuple[str, ...] = ()
    """Folders, .gguf files or hub ids; empty: every model of the catalog."""
    is_open: bool = True
    """False: invitation only."""
    public_url: str = ""
    """What links carry; empty: made from host and port."""
    behind_proxy: bool = False
    """A reverse proxy ends TLS and passes plain HTTP on."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    """Given; without them a pool that others can reach makes its own."""
    defaults: PoolDefaults = PoolDefaults()
    plan: PlanSettings = field(default_factory=PlanSettings)
    answers: AnswerTimes = AnswerTimes()

    @property
    def speaks_tls(self) -> bool:
        """Everywhere but on loopback, unless a proxy does it."""
        return not self.behind_proxy and (self.tls_certificate is not None or not is_loopback(self.host))


class ConfigError(PoolError):
    """A setting that cannot be used; the sentence names it."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_setting", message)


@dataclass(frozen=True, slots=True)
class MachineNames:
    """What this machine is called by others, as far as it knows."""

    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """The one that others most likely reach first."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where the pool is for the people who use it, and by which names it answers."""

    base_url: str
    pin: str
    """The certificate's fingerprint (SHA-256, hex) that links carry; empty without a certificate of the pool's own."""
    is_secure: bool
    """Browsers speak HTTPS to it, whoever ends the TLS."""
    allowed_hosts: frozenset[str]
    is_open: bool
    pool_name: str
    local_url: str = ""
    """Where programs on the pool's own machine reach it; "" in what an older version wrote."""

    def join_link(self, invite: str = "") -> str:
        """For the app and for `decentllm node run --join`."""
        return format_join_link(JoinLink(self.base_url, self.pin, invite))

    def browser_link(self, invite: str = "") -> str:
        """For the chat page."""
        return format_browser_link(JoinLink(self.base_url, self.pin, invite))

    def operator_link(self, token: str) -> str:
        """Signs an operator in, once. The token is in a fragment, so that it reaches no server log."""
        return f"{self.base_url}/operator#token={token}"


def default_data_dir() -> Path:
    return Path(appdirs.user_data_dir("decentllm-coordinator", appauthor=False))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- checks; `setting` is what the sentence calls it


def check_host(host: str, setting: str = "--host") -> None:
    """Raises ConfigError for what can be no address. Whether this machine has it shows when the pool listens."""
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{setting} must be an address to listen on, such as 127.0.0.1 or 0.0.0.0.")


def check_pool_name(name: str, setting: str = "--name") -> None:
    """What the wire accepts as a name (protocol.values.Name). Raises ConfigError."""
    if not 1 <= len(name) <= 64 or any(c in "<>\"'&" or not c.isprintable() for c in name):
        raise ConfigError(f"{setting} must have 1 to 64 characters, none of them a quote, <, > or &.")


def checked_public_url(url: str, setting: str = "--public-url") -> str:
    """The address as links carry it: without a path, and without the port that goes without saying.

    Raises ConfigError."""
    try:
        parts, base = urlsplit(url), parse_join_link(url).url
        if parts.scheme not in DEFAULT_PORTS or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError
        if _is_unspecified(parts.hostname or ""):
            raise ValueError
    except (ValueError, JoinLinkError):
        sentence = f"{setting} must be an address without a path, such as https://pool.example.org:8443."
        raise ConfigError(sentence) from None
    return base.removesuffix(f":{DEFAULT_PORTS[parts.scheme]}")


def check_config(config: PoolConfig) -> None:
    """What the settings say together. Raises ConfigError."""
    check_host(config.host)
    check_pool_name(config.pool_name)
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigError(
            "Certificate and key belong together: give both --tls-cert and --tls-key (or tls_certificate and tls_key)."
        )
    if config.behind_proxy:
        _check_behind_proxy(config)
    elif config.public_url:
        _check_scheme(config)


def _check_behind_proxy(config: PoolConfig) -> None:
    if not config.public_url.startswith("https://"):
        raise ConfigError(
            "--behind-proxy needs --public-url https://... (public_url), the address that the proxy answers to."
        )
    if config.tls_certificate is not None:
        raise ConfigError("With --behind-proxy the proxy has the certificate: leave out --tls-cert and --tls-key.")


def _check_scheme(config: PoolConfig) -> None:
    if config.speaks_tls and not config.public_url.startswith("https://"):
        raise ConfigError("--public-url (public_url) must begin with https://, because this pool speaks TLS.")
    if not config.speaks_tls and config.public_url.startswith("https://"):
        raise ConfigError(
            "--public-url (public_url) begins with https://, but this pool speaks plain HTTP: add --behind-proxy if a"
            " proxy ends TLS, or give --tls-cert and --tls-key."
        )


# ---------------------------------------------------------------- the site


def make_site(config: PoolConfig, port: int, pin: str, machine: MachineNames) -> Site:
    """Where a pool that listens on `port` is."""
    return Site(
        base_url=config.public_url or _base_url(config, port, machine),
        pin=pin,
        is_secure=config.speaks_tls or config.behind_proxy,
        allowed_hosts=frozenset(names_of(config, machine)),
        is_open=config.is_open,
        pool_name=config.pool_name,
        local_url=_local_url(config, port),
    )


def names_of(config: PoolConfig, machine: MachineNames) -> list[str]:
    """Every name and address that people may use for this pool; also what its own certificate is made for."""
    public_host = urlsplit(config.public_url).hostname or ""
    return list(dict.fromkeys(_usable((*LOOPBACK_NAMES, public_host, config.host, *machine.names, *machine.addresses))))


def _usable(names: Iterable[str]) -> Iterable[str]:
    """Lower case (host names have none: RFC 4343), without what is neither a host name nor an address of a machine."""
    for name in map(str.lower, names):
        if (_HOST_NAME.fullmatch(name) or _is_address(name)) and not _is_unspecified(name):
            yield name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    """0.0.0.0 and ::, which mean every address and are none."""
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def _base_url(config: PoolConfig, port: int, machine: MachineNames) -> str:
    scheme = "https" if config.speaks_tls else "http"
    host = _reachable_host(config.host, machine) if _is_unspecified(config.host) else config.host
    shown_host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown_host}" + ("" if port == DEFAULT_PORTS[scheme] else f":{port}")


def _local_url(config: PoolConfig, port: int) -> str:
    """Past proxies, routers and name servers."""
    host = "127.0.0.1" if config.host == "localhost" else config.host
    if _is_unspecified(host):
        host = "::1" if ":" in host else "127.0.0.1"
    scheme = "https" if config.speaks_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _reachable_host(bound: str, machine: MachineNames) -> str:
    """For links of a pool that listens on every address: an address, because names are not known everywhere."""
    addresses = [address for address in machine.addresses if ":" in bound or ":" not in address]
    return next(iter((*addresses, *machine.names)), "localhost")
