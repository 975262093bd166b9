"""Settings: loopback only, names that the wire accepts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import ConfigError, PoolConfig, check_host, check_pool_name, default_data_dir
from protocol.values import Name


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "example.org", "", "127.0.0.1 ", "localhost.evil.test"]
)
def test_anything_else_is_refused_with_the_settings_name(host: str) -> None:
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


def test_the_defaults_are_private_and_frozen() -> None:
    config = PoolConfig(Path("/nowhere"))
    assert (config.host, config.port, config.models) == ("127.0.0.1", 8000, ())
    check_host(config.host)
    check_pool_name(config.pool_name)
    with pytest.raises(AttributeError):
        config.port = 1  # type: ignore[misc]
    assert default_data_dir().is_absolute()
