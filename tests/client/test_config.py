"""Settings: what a person pasted or typed becomes a value or one sentence."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.config import MAX_SIZE_BYTES, NodeConfig, parse_join_url, parse_size
from client.errors import JoinError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://pool.example", "https://pool.example"),
        ("pool.example:8000", "http://pool.example:8000"),
        ("  http://pool.example:8000/\n", "http://pool.example:8000"),
        ("HTTP://Pool.Example", "http://Pool.Example"),
        ("http://pool.example/chat?x=1#y", "http://pool.example"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://bücher.example", "http://bücher.example"),
    ],
)
def test_an_address_is_cut_to_its_base(text: str, url: str) -> None:
    assert parse_join_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "http://",
        "ftp://pool.example",
        "ws://pool.example",
        "javascript:alert(1)//",
        "http://:8000",
        "http://pool.example:0",
        "http://pool.example:70000",
        "http://pool.example:abc",
        "http://pool.example:-1",
        "http://[::1",
        '"http://pool.example"',
        "http://pool example",
        "http://pool<script>",
        "http://po\x00ol",
        "http://po\udcffol",
        "://",
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(JoinError) as caught:
        parse_join_url(text)
    assert caught.value.code == "bad_address"
    assert str(caught.value).startswith("The pool's address ")


@pytest.mark.parametrize("text", ["http://user:secret@pool", "http://user@pool", "http://:secret@pool", "http://@pool"])
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(JoinError, match="user name or password") as caught:
        parse_join_url(text)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60) | st.text("htps:/@[]%.0123456789 \\?#", max_size=60).map("http://".__add__))
def test_any_text_gives_an_address_or_a_join_error(text: str) -> None:
    with contextlib.suppress(JoinError):
        assert parse_join_url(parse_join_url(text))


@pytest.mark.parametrize(
    ("join_url", "socket_url"),
    [("http://h:1", "ws://h:1/node"), ("https://h", "wss://h/node"), ("http://[::1]:2", "ws://[::1]:2/node")],
)
def test_the_node_socket_is_beside_the_web_page(join_url: str, socket_url: str) -> None:
    assert NodeConfig(join_url, Path(), "node").node_socket_url == socket_url


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
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "-6GB", "nan", "inf", "1e9", "6 TB", "6,5GB", "6GBB", "0x10", "6 G B"]
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
