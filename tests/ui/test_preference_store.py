"""Preferences in memory and in their file."""

from __future__ import annotations

from pathlib import Path

from pytestqt.qtbot import QtBot

from client.ui.preference_store import PreferenceStore
from client.ui.preferences import Preferences, load_preferences


def test_what_is_taken_is_told_and_written(qtbot: QtBot, tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path / "gui.toml")
    store.load()
    with qtbot.waitSignal(store.changed) as blocker:
        store.take(Preferences(name="Ada"))
    assert blocker.args == [Preferences(name="Ada")]
    assert load_preferences(tmp_path / "gui.toml").name == "Ada"


def test_what_is_the_same_is_not_written(qtbot: QtBot, tmp_path: Path) -> None:
    store = PreferenceStore(tmp_path / "gui.toml")
    with qtbot.assertNotEmitted(store.changed):
        store.take(Preferences())
    assert not (tmp_path / "gui.toml").exists()


def test_what_cannot_be_written_counts_and_is_reported(qtbot: QtBot, tmp_path: Path) -> None:
    (tmp_path / "gui.toml").mkdir()
    store = PreferenceStore(tmp_path / "gui.toml")
    with qtbot.waitSignal(store.problem) as blocker:
        store.load()
    assert "gui.toml cannot be used" in blocker.args[0]
    (tmp_path / "gone").write_text("")
    broken = PreferenceStore(tmp_path / "gone" / "gui.toml")
    problems: list[str] = []
    broken.problem.connect(lambda sentence: problems.append(sentence))
    broken.take(Preferences(name="Ada"))
    assert broken.value.name == "Ada"
    assert "cannot be used" in problems[0]
