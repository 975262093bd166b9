"""`init`: a file that `serve` reads, with every setting explained."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.config import DEFAULT_POOL_NAME, ConfigError, PoolConfig, check_pool_name
from coordinator.first_setup import Ask, ask_settings, next_steps, settings_text, write_settings
from coordinator.settings_file import SECTIONS, load_config, parse_settings
from protocol.pause import DEFAULT_RULES

CONFIG = PoolConfig(Path("/srv/pool"))


def answering(*answers: str) -> tuple[Ask, list[str]]:
    """Types these lines, and keeps the questions."""
    lines: Iterator[str] = iter(answers)
    questions: list[str] = []

    def ask(question: str) -> str:
        questions.append(question)
        return next(lines)

    return ask, questions


def uncommented(text: str) -> str:
    """With every setting that is shown in a comment."""
    return re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)


# ---------------------------------------------------------------- the file


def test_what_is_written_is_what_serve_reads(tmp_path: Path) -> None:
    given_settings = {
        "pool_name": "Lab 机器", "host": "0.0.0.0", "port": 0, "models": ("owner/name",), "is_open": False,
        "public_url": "https://pool.example.org",
    }  # fmt: skip
    written = write_settings(tmp_path / "new", given_settings, may_replace=False)
    assert load_config(tmp_path / "new", {}) == written
    assert (written.pool_name, written.port, written.is_open) == ("Lab 机器", 0, False)


def test_the_file_is_private(tmp_path: Path) -> None:
    write_settings(tmp_path, {}, may_replace=False)
    assert stat.S_IMODE((tmp_path / "pool.toml").stat().st_mode) == 0o600


def test_every_setting_is_in_the_file_and_could_be_taken_as_it_is_shown() -> None:
    text = uncommented(settings_text(CONFIG))
    document = tomllib.loads(text)
    assert {name: set(section) for name, section in document.items()} == {
        name: set(section) for name, section in SECTIONS.items()
    }
    parse_settings(text.encode(), CONFIG.data_dir)


def test_the_rules_in_comments_are_those_that_count_anyway() -> None:
    shown = parse_settings(uncommented(settings_text(CONFIG)).encode(), CONFIG.data_dir)["defaults"].rules
    for name in ("mode", "run_on_battery", "away_after_s", "other_gpu_percent", "min_free_gpu_bytes"):
        assert getattr(shown, name) == getattr(DEFAULT_RULES, name)


@given(st.text(max_size=64), st.lists(st.text(min_size=1, max_size=40), max_size=3))
def test_whatever_it_is_called_it_is_read_back(name: str, models: list[str]) -> None:
    config = PoolConfig(CONFIG.data_dir, pool_name=name, models=tuple(models))
    try:
        check_pool_name(name)
        data = settings_text(config).encode()
    except (ConfigError, UnicodeEncodeError):
        return
    if all(model.isprintable() for model in models):
        assert PoolConfig(CONFIG.data_dir, **parse_settings(data, CONFIG.data_dir)).models == tuple(models)


def test_a_file_that_is_there_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    write_settings(tmp_path, {"port": 1}, may_replace=False)
    with pytest.raises(ConfigError, match=r"is there already; edit it, or replace it with --force"):
        write_settings(tmp_path, {"port": 2}, may_replace=False)
    assert load_config(tmp_path, {}).port == 1
    write_settings(tmp_path, {"port": 2}, may_replace=True)
    assert load_config(tmp_path, {}).port == 2


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"pool_name": "<b>"}, "--name"),
        ({"host": "a b"}, "--host"),
        ({"host": "0.0.0.0", "public_url": "http://pool"}, "must begin with https://"),
        ({"models": ("a\nb",)}, "models must be a list"),
        ({"models": ("\ud800",)}, "cannot be written as UTF-8"),
    ],
)
def test_what_serve_would_refuse_is_not_written(tmp_path: Path, given_settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        write_settings(tmp_path, given_settings, may_replace=False)
    assert not (tmp_path / "pool.toml").exists()


def test_a_folder_is_written_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    written = write_settings(tmp_path / "pool", {"models": ("model", "owner/name")}, may_replace=False)
    assert written.models == (str(tmp_path / "model"), "owner/name")


# ---------------------------------------------------------------- questions and what comes next


def test_empty_answers_take_the_defaults() -> None:
    ask, questions = answering("", "", "")
    assert ask_settings(ask) == {"pool_name": DEFAULT_POOL_NAME, "models": (), "is_open": True}
    assert len(questions) == 3


def test_an_answer_that_cannot_be_is_asked_for_again() -> None:
    ask, questions = answering("<b>", "Lab", " owner/name ", "maybe", "Invited")
    assert ask_settings(ask) == {"pool_name": "Lab", "models": ("owner/name",), "is_open": False}
    assert questions[1].startswith("A name must have 1 to 64 characters")
    assert "open or invited" in questions[4]


def test_the_next_steps_name_the_commands_with_the_folder() -> None:
    steps = next_steps(PoolConfig(Path("/srv/my pool")))
    assert "decentllm-coordinator serve --data-dir '/srv/my pool'" in steps
    assert "model add" in steps
    assert 'host = "0.0.0.0"' in steps


def test_the_next_steps_are_only_those_that_are_needed() -> None:
    steps = next_steps(PoolConfig(Path("/srv/pool"), host="0.0.0.0", models=("owner/name",)))
    assert "model add" not in steps
    assert "Only this machine" not in steps
