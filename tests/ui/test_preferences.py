"""What the app remembers, and what it makes of a file that people have edited."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from client.config import Direct
from client.ui.pause_choice import ManualPause
from client.ui.preferences import CloseAction, Preferences, PreferencesError, load_preferences, save_preferences
from protocol.join_link import JoinLink
from protocol.pause import Hours, PauseMode, PauseRules

POOL = Preferences(join_link="https://pool.example.org")
FULL = Preferences(
    join_link=f"decentllm://pool.example.org/join?pin={'ab' * 32}&invite=abcdefgh",
    contributes=True,
    is_paused=True,
    paused_until_s=1_800_000_000.5,
    name='Ada\'s "computer" \\ Ä\U0001f600\x7f',
    max_memory_bytes=8 * 2**30,
    max_disk_bytes=20 * 10**9,
    direct=Direct.ON,
    close_action=CloseAction.KEEP,
    starts_hidden=False,
    rules=PauseRules(
        mode=PauseMode.WHEN_AWAY,
        run_on_battery=True,
        away_after_s=300.0,
        other_gpu_percent=30,
        max_temperature_c=75,
        programs=("blender", "steam app"),
        hours=Hours(22 * 60, 8 * 60),
    ),
)


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert load_preferences(tmp_path / "gui.toml") == Preferences()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    for preferences in (POOL, FULL, Preferences()):
        save_preferences(path, preferences)
        assert load_preferences(path) == preferences
    assert [entry.name for entry in tmp_path.iterdir()] == ["gui.toml"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_the_file_is_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    save_preferences(path, POOL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


BAD_FILES = {
    "no TOML": b"join_link = \n",
    "UTF-16": 'join_link = "x"'.encode("utf-16"),
    "wrong type": b"join_link = 3\n",
    "no address": b'join_link = "rm -rf /"\n',
    "huge": b"#" * 100_000,
    "newer": b"version = 99\n",
    "wrong mode": b'[rules]\nmode = "never"\n',
    "limit out of range": b"max_disk_bytes = 5\n",
    "look-alike host": 'join_link = "https://pööl.example.org"\n'.encode(),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_an_unusable_file_is_reported_and_kept_when_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gui.toml"
    path.write_bytes(content)
    with pytest.raises(PreferencesError, match=r"gui\.toml cannot be used"):
        load_preferences(path)
    save_preferences(path, POOL)
    kept = [entry for entry in tmp_path.iterdir() if ".bad-" in entry.name]
    assert [entry.read_bytes() for entry in kept] == [content]


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_text("version = 1\njoin_link = \n")
    with pytest.raises(PreferencesError, match="line 2, column"):
        load_preferences(path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_bytes(b'\xef\xbb\xbfjoin_link = "https://pool.example.org"\n')
    assert load_preferences(path) == POOL


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


def test_the_file_of_the_first_version_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_text('version = 1\njoin_url = "https://pool.example.org"\n')
    assert load_preferences(path) == POOL


@pytest.mark.parametrize("extra", ["colour = 1\n", "[rules]\nmood = 1\n"])
def test_unknown_keys_are_left_out_and_the_file_is_kept(tmp_path: Path, extra: str) -> None:
    path = tmp_path / "gui.toml"
    path.write_text('join_link = "https://pool.example.org"\n' + extra)
    assert load_preferences(path) == POOL
    save_preferences(path, POOL)
    assert not {"colour", "mood"} & set(path.read_text().split())
    assert len([entry for entry in tmp_path.iterdir() if ".bad-" in entry.name]) == 1


def test_the_link_comes_and_goes_with_its_pin_and_invitation() -> None:
    link = JoinLink("https://pool.example.org", "ab" * 32, "abcdefgh")
    assert Preferences().link is None
    assert Preferences().with_link(link).link == link


def test_a_pause_that_a_restart_ends_is_not_remembered() -> None:
    paused = Preferences().with_pause(ManualPause(1e9))
    assert paused.pause == ManualPause(1e9)
    assert paused.with_pause(ManualPause(outlives_app=False)).pause is None
    assert paused.with_pause(None).pause is None
    assert Preferences().with_pause(ManualPause()).pause == ManualPause()
