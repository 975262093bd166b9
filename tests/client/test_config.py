"""Settings: what a person pasted or typed becomes a value or one sentence."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.headers import build_host
from websockets.uri import parse_uri

from client.config import MAX_SIZE_BYTES, NodeConfig, join_link, parse_size
from client.errors import JoinError
from protocol.join_link import JoinLink

PIN = "0123456789abcdef" * 4


def config(url: str) -> NodeConfig:
    return NodeConfig(JoinLink(url), Path(), "node")


def test_a_link_is_read_with_its_fingerprint_and_its_invitation() -> None:
    link = join_link(f"decentllm://pool.example:8443/join?pin={PIN}&invite=invitation")
    assert link == JoinLink("https://pool.example:8443", PIN, "invitation")
    assert join_link("http://pool.example/") == JoinLink("http://pool.example")


@pytest.mark.parametrize("text", ["", "ftp://pool.example", "http://pool example", "decentllm://pool/join?pin=1"])
def test_what_is_no_link_is_a_join_error_with_its_sentence(text: str) -> None:
    with pytest.raises(JoinError) as caught:
        join_link(text)
    assert caught.value.code == "bad_link"
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("join_url", "socket_url"),
    [("http://h:1", "ws://h:1/node"), ("https://h", "wss://h/node"), ("http://[::1]:2", "ws://[::1]:2/node")],
)
def test_the_node_socket_is_beside_the_web_page(join_url: str, socket_url: str) -> None:
    assert config(join_url).node_socket_url == socket_url
    assert config(join_url).join_url == join_url


@pytest.mark.parametrize(
    ("url", "audience"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://pool.example", "pool.example"),
        ("https://pool.example:443", "pool.example"),
        ("http://pool.example:80", "pool.example"),
        ("https://pool.example:80", "pool.example:80"),
        ("https://Pool.Example:8443", "pool.example:8443"),
        ("http://[FD00::1]:8000", "[fd00::1]:8000"),
        ("http://[::1]", "[::1]"),
        ("https://bücher.example:8443", "xn--bcher-kva.example:8443"),
    ],
)
def test_a_hello_is_for_the_host_that_the_connection_names(url: str, audience: str) -> None:
    assert config(url).audience == audience
    websocket = parse_uri(config(url).node_socket_url)
    assert build_host(websocket.host, websocket.port, websocket.secure).lower() == audience


def test_the_invitation_is_in_no_repr_of_the_settings() -> None:
    assert "invitation" not in repr(NodeConfig(JoinLink("http://h", "", "invitation"), Path(), "node"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2000000000", 2 * 10**9),
        ("6GB", 6 * 10**9),
        ("6gb", 6 * 10**9),
        (" 1.5 G ", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("3k", 3000),
        ("7B", 7),
        ("1", 1),
        ("2TB", 2 * 10**12),
        ("1 TiB", 2**40),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "-6GB", "nan", "inf", "1e9", "6 PB", "6,5GB", "6GBB", "0x10", "6 G B"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="6GB, 512MiB or 2000000000"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.0001", f"{MAX_SIZE_BYTES}0", "9" * 400, "9" * 5000 + "GB"])
def test_a_size_out_of_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(ValueError, match="out of range: from 1 byte to ") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 150


@given(st.text("0123456789.KMGiB-+ eEnaf", max_size=20))
def test_any_text_gives_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 1 <= parse_size(text) <= MAX_SIZE_BYTES
