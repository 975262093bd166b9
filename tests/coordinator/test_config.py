"""Settings: what they say together, and the address and names that follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import (
    ConfigError,
    MachineNames,
    PoolConfig,
    Site,
    check_config,
    check_host,
    check_pool_name,
    checked_public_url,
    default_data_dir,
    is_loopback,
    make_site,
    names_of,
)
from protocol.join_link import parse_join_link
from protocol.values import Name

PIN = "ab" * 32
CONFIG = PoolConfig(Path("/nowhere"))
LAN = replace(CONFIG, host="0.0.0.0")
CERTIFICATE = {"tls_certificate": Path("/c.pem"), "tls_key": Path("/k.pem")}
MACHINE = MachineNames(("Ada", "ada.example.org", "_odd_", ""), ("192.168.1.7", "2001:db8::7"))


def site(config: PoolConfig, port: int = 8443) -> Site:
    return make_site(config, port, PIN if config.speaks_tls else "", MACHINE)


# ---------------------------------------------------------------- single settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_only_this_machine_reaches_loopback(host: str) -> None:
    assert is_loopback(host)
    check_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "fe80::1%eth0", "localhost.evil.test", "example.org"])
def test_every_other_address_is_taken_for_one_that_others_reach(host: str) -> None:
    assert not is_loopback(host)
    check_host(host)


@pytest.mark.parametrize("host", ["", " ", "127.0.0.1 ", "a/b", "a@b", "ä", "x" * 254, "a\nb"])
def test_what_can_be_no_address_is_refused_with_the_settings_name(host: str) -> None:
    with pytest.raises(ConfigError, match="--host") as caught:
        check_host(host)
    assert caught.value.code == "bad_setting"


@pytest.mark.parametrize("name", ["A pool", "Ada-Lab 3", "机器", "x" * 64])
def test_a_pools_name_is_allowed(name: str) -> None:
    check_pool_name(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a<b", "a\nb", 'a"b', "it's", "a&b", "\x00"])
def test_a_name_that_could_be_markup_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        check_pool_name(name)


@given(st.text(max_size=70))
def test_every_allowed_name_is_accepted_by_the_wire(name: str) -> None:
    try:
        check_pool_name(name)
    except ConfigError:
        return
    assert msgspec.json.decode(msgspec.json.encode(name), type=Name) == name


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("https://pool.example.org", "https://pool.example.org"),
        ("https://Pool.Example.org/", "https://pool.example.org"),
        ("https://pool.example.org:443", "https://pool.example.org"),
        ("https://pool.example.org:8443/", "https://pool.example.org:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_a_public_address_is_kept_as_links_and_browsers_write_it(given_url: str, url: str) -> None:
    assert checked_public_url(given_url) == url


@pytest.mark.parametrize(
    "url",
    [
        "pool.example.org", "ftp://pool", "https://", "https://pool/path", "https://pool/?q", "https://pool/#x",
        "https://me@pool", "https://pool:0", "https://pool:99999", "https://0.0.0.0:1", "https://[::]", "https://a b",
        "decentllm://pool/join", "https://[", "wss://pool",
    ],
)  # fmt: skip
def test_a_public_address_that_no_link_can_carry_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--public-url must be an address without a path"):
        checked_public_url(url)


# ---------------------------------------------------------------- settings together


def test_the_defaults_are_private_and_frozen() -> None:
    assert (CONFIG.host, CONFIG.port, CONFIG.models, CONFIG.is_open) == ("127.0.0.1", 8000, (), True)
    assert not CONFIG.speaks_tls
    check_config(CONFIG)
    with pytest.raises(AttributeError):
        CONFIG.port = 1  # type: ignore[misc]
    assert default_data_dir().is_absolute()


@pytest.mark.parametrize(
    ("config", "speaks_tls"),
    [
        (CONFIG, False),
        (replace(CONFIG, **CERTIFICATE), True),
        (LAN, True),
        (replace(LAN, host="::"), True),
        (replace(LAN, host="192.168.1.7"), True),
        (replace(LAN, behind_proxy=True, public_url="https://pool.example.org"), False),
    ],
)
def test_whoever_others_can_reach_speaks_tls_unless_a_proxy_does(config: PoolConfig, speaks_tls: bool) -> None:
    check_config(config)
    assert config.speaks_tls == speaks_tls


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tls_certificate": Path("/c")}, "give both --tls-cert and --tls-key"),
        ({"tls_key": Path("/k")}, "give both --tls-cert and --tls-key"),
        ({"behind_proxy": True}, "--behind-proxy needs --public-url https://"),
        ({"behind_proxy": True, "public_url": "http://pool"}, "--behind-proxy needs --public-url https://"),
        ({"behind_proxy": True, "public_url": "https://pool", **CERTIFICATE}, "leave out --tls-cert"),
        ({"public_url": "https://pool"}, "add --behind-proxy"),
        ({"host": "0.0.0.0", "public_url": "http://pool"}, "must begin with https://"),
        ({"host": ""}, "--host"),
        ({"pool_name": ""}, "--name"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(replace(CONFIG, **changes))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the site


@pytest.mark.parametrize(
    ("config", "base_url"),
    [
        (CONFIG, "http://127.0.0.1:8443"),
        (replace(CONFIG, host="::1"), "http://[::1]:8443"),
        (LAN, "https://192.168.1.7:8443"),
        (replace(LAN, host="::"), "https://192.168.1.7:8443"),
        (replace(LAN, host="10.0.0.1"), "https://10.0.0.1:8443"),
        (replace(LAN, public_url="https://pool.example.org"), "https://pool.example.org"),
    ],
)
def test_links_carry_the_public_address_or_one_that_others_can_reach(config: PoolConfig, base_url: str) -> None:
    assert site(config).base_url == base_url


def test_a_port_that_goes_without_saying_is_left_out_as_browsers_do() -> None:
    assert site(replace(LAN, host="10.0.0.1"), 443).base_url == "https://10.0.0.1"
    assert site(CONFIG, 80).base_url == "http://127.0.0.1"


def test_without_an_address_the_machines_name_is_in_the_links() -> None:
    assert make_site(LAN, 1, PIN, MachineNames(("ada",), ("2001:db8::7",))).base_url == "https://ada:1"
    assert make_site(LAN, 1, PIN, MachineNames()).base_url == "https://localhost:1"


def test_a_site_is_secure_where_browsers_speak_https() -> None:
    assert not site(CONFIG).is_secure
    assert site(LAN).is_secure
    assert site(replace(CONFIG, behind_proxy=True, public_url="https://pool")).is_secure


def test_the_pool_answers_to_its_own_names_and_to_no_other() -> None:
    hosts = site(replace(LAN, public_url="https://Pool.example.org:1".lower())).allowed_hosts
    assert {"localhost", "127.0.0.1", "::1", "ada", "ada.example.org", "pool.example.org"} <= hosts
    assert hosts.isdisjoint({"0.0.0.0", "_odd_", "", "Ada", "example.org"})


def test_the_names_for_a_certificate_are_each_there_once() -> None:
    names = names_of(replace(LAN, host="192.168.1.7"), MACHINE)
    assert names.count("192.168.1.7") == 1
    assert "2001:db8::7" in names


def test_links_lead_back_to_the_pool() -> None:
    pool = site(LAN)
    link = parse_join_link(pool.join_link("in-12345678"))
    assert (link.url, link.pin, link.invite) == (pool.base_url, PIN, "in-12345678")
    assert parse_join_link(pool.join_link()).invite == ""
    assert parse_join_link(pool.browser_link("in-12345678")).invite == "in-12345678"
    assert pool.browser_link() == f"{pool.base_url}/"
    assert pool.operator_link("op-1") == f"{pool.base_url}/operator#token=op-1"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "localhost"}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "public_url": "https://pool.example.org"}, "https://127.0.0.1:8000"),
        ({"host": "::"}, "https://[::1]:8000"),
        ({"host": "10.0.0.1"}, "https://10.0.0.1:8000"),
        ({"behind_proxy": True, "public_url": "https://pool.example.org"}, "http://127.0.0.1:8000"),
    ],
)
def test_programs_on_the_pools_machine_reach_it_past_proxies_and_routers(settings: dict[str, Any], url: str) -> None:
    assert make_site(PoolConfig(Path("/pool"), **settings), 8000, "", MACHINE).local_url == url
