"""The remembered pool, and what is accepted as a pool's address."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from client.ui.preferences import (
    AddressError,
    Preferences,
    PreferencesError,
    load_preferences,
    parse_pool_address,
    save_preferences,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://pool.example.org", "https://pool.example.org"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("ws://[::1]:9/nodes", "http://[::1]:9"),
        ("wss://pool.example.org/chat?x=1", "https://pool.example.org"),
        ("  https://pool.example.org\n", "https://pool.example.org"),
        ("WSS://pool.example.org", "https://pool.example.org"),
        ("pool.example.org:8000", "http://pool.example.org:8000"),
    ],
)
def test_an_address_is_brought_to_the_agents_form(text: str, address: str) -> None:
    assert parse_pool_address(text) == address
    assert parse_pool_address(address) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Paste the pool's address"),
        ("   ", "Paste the pool's address"),
        ("ftp://pool.example.org", "must look like"),
        ("javascript:alert(1)", "not a valid URL"),
        ("file:///etc/passwd", "must look like"),
        ("https://", "must look like"),
        ("https://:80", "must look like"),
        ("https://user:secret@pool.example.org", "user name or password"),
        ("https://pool.example.org:0", "must look like"),
        ("https://pool.example.org:70000", "not a valid URL"),
        ("https://pool.example.org:abc", "not a valid URL"),
        ("https://[::1", "not a valid URL"),
        ("https://pool example.org", "blank"),
        ('https://pool.example.org/"x', "quotation mark"),
        ("https://pool.example.org/\x00", "cannot be shown"),
        ("https://pööl.example.org", "xn--pl-fkaa.example.org"),
        ("https://" + "a" * 400, "longer than 400"),
    ],
)
def test_what_is_no_address_gets_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as caught:
        parse_pool_address(text)
    assert str(caught.value).endswith((".", "like this."))


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert load_preferences(tmp_path / "gui.toml") == Preferences()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    save_preferences(path, Preferences(join_url="https://pool.example.org"))
    assert load_preferences(path).join_url == "https://pool.example.org"
    assert [entry.name for entry in tmp_path.iterdir()] == ["gui.toml"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_the_file_is_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    save_preferences(path, Preferences(join_url="https://pool.example.org"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


BAD_FILES = {
    "no TOML": b"join_url = \n",
    "UTF-16": 'join_url = "x"'.encode("utf-16"),
    "wrong type": b"join_url = 3\n",
    "no address": b'join_url = "rm -rf /"\n',
    "huge": b"#" * 100_000,
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_an_unusable_file_is_reported_and_kept_when_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gui.toml"
    path.write_bytes(content)
    with pytest.raises(PreferencesError, match=r"gui\.toml cannot be used"):
        load_preferences(path)
    save_preferences(path, Preferences(join_url="https://pool.example.org"))
    kept = [entry for entry in tmp_path.iterdir() if ".bad-" in entry.name]
    assert [entry.read_bytes() for entry in kept] == [content]


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_text("version = 1\njoin_url = \n")
    with pytest.raises(PreferencesError, match="line 2, column"):
        load_preferences(path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_bytes(b'\xef\xbb\xbfjoin_url = "https://pool.example.org"\n')
    assert load_preferences(path).join_url == "https://pool.example.org"


def test_a_folder_in_the_way_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.mkdir()
    with pytest.raises(PreferencesError):
        load_preferences(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PreferencesError):
        save_preferences(tmp_path / "gui.toml", Preferences())
