"""pool.toml: every wrong line is one sentence with file, section and setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.answer_times import AnswerTimes
from coordinator.config import ConfigError, PlanSettings, PoolConfig
from coordinator.settings_file import MAX_FILE_BYTES, load_config, parse_settings, read_settings
from protocol.pause import Hours, PauseMode, PauseRules, PoolDefaults

FOLDER = Path("/srv/pool")


def parse(text: str) -> dict[str, Any]:
    return parse_settings(text.encode(), FOLDER)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value)


# ---------------------------------------------------------------- what is read


def test_every_setting_of_the_pool_is_read() -> None:
    text = """
    [pool]
    name = "Lab 机器"
    host = "0.0.0.0"
    port = 8443
    models = ["/srv/models/qwen", "owner/name"]
    open = false
    public_url = "https://Pool.example.org:443/"
    behind_proxy = false
    tls_certificate = "/etc/ssl/chain.pem"
    tls_key = "key.pem"
    """
    assert PoolConfig(FOLDER, **parse(text)) == PoolConfig(
        data_dir=FOLDER,
        host="0.0.0.0",
        port=8443,
        pool_name="Lab 机器",
        models=("/srv/models/qwen", "owner/name"),
        is_open=False,
        public_url="https://pool.example.org",
        tls_certificate=Path("/etc/ssl/chain.pem"),
        tls_key=FOLDER / "key.pem",
    )


def test_every_default_for_machines_is_read() -> None:
    text = """
    [defaults]
    mode = "when_away"
    run_on_battery = true
    away_after_s = 60
    other_gpu_percent = 5
    min_free_gpu_memory = "1.5GiB"
    max_temperature_c = 75
    programs = ["blender"]
    hours = "20:00-7:30"
    max_memory = "8 GB"
    max_layers = 12
    max_disk = "50GB"
    """
    rules = PauseRules(
        mode=PauseMode.WHEN_AWAY,
        run_on_battery=True,
        away_after_s=60.0,
        other_gpu_percent=5,
        min_free_gpu_bytes=3 * 2**29,
        max_temperature_c=75,
        programs=("blender",),
        hours=Hours(20 * 60, 7 * 60 + 30),
    )
    defaults = PoolDefaults(rules, max_memory_bytes=8 * 10**9, max_layers=12, max_disk_bytes=50 * 10**9)
    assert parse(text) == {"defaults": defaults}
    assert msgspec.json.decode(msgspec.json.encode(defaults), type=PoolDefaults) == defaults


@pytest.mark.parametrize("text", ["", "# nothing", "[pool]", '[pool]\npublic_url = ""\n'])
def test_what_is_not_in_the_file_stays_as_it_is_by_default(text: str) -> None:
    assert PoolConfig(FOLDER, **parse(text)) == PoolConfig(FOLDER)


def test_the_section_of_defaults_may_be_empty() -> None:
    assert parse("[defaults]") == {"defaults": PoolDefaults()}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", ["-1", "65536", "8000.0", '"8000"', "true", "[8000]", "2024-01-01"])
def test_a_wrong_port_is_named_with_its_file_and_section(value: str) -> None:
    assert refusal(f"[pool]\nport = {value}") == "pool.toml: [pool] port must be a whole number from 0 to 65535."


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("name = 1", "[pool] name must be text in quotes."),
        ('name = ""', "[pool] name must have 1 to 64 characters"),
        ('name = "a<b"', "[pool] name must have 1 to 64 characters"),
        ("host = 127", "[pool] host must be an address in quotes."),
        ('host = "a b"', "[pool] host must be an address to listen on"),
        ('models = "one"', '[pool] models must be a list such as ["/srv/models/qwen", "owner/name"]'),
        ('models = ["", "x"]', "[pool] models must be a list"),
        ("models = [1]", "[pool] models must be a list"),
        ('models = ["a\\u0000b"]', "[pool] models must be a list"),
        ('open = "yes"', "[pool] open must be true or false."),
        ("open = 1", "[pool] open must be true or false."),
        ('public_url = "pool.example.org"', "[pool] public_url must be an address without a path"),
        ("public_url = 1", "[pool] public_url must be an address in quotes."),
        ("behind_proxy = 0", "[pool] behind_proxy must be true or false."),
        ('tls_key = ""', "[pool] tls_key must be the path of a file, in quotes."),
        ("tls_certificate = []", "[pool] tls_certificate must be the path of a file, in quotes."),
        ("prot = 1", "[pool] prot is no setting (did you mean port?)."),
        ("zzz = 1", "[pool] zzz is no setting."),
    ],
)
def test_a_wrong_setting_of_the_pool_is_one_sentence(line: str, words: str) -> None:
    assert refusal(f"[pool]\n{line}").startswith(f"pool.toml: {words}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('mode = "never"', 'mode must be one of "always", "when_free" and "when_away".'),
        ("mode = 1", 'mode must be one of "always", "when_free" and "when_away".'),
        ("mode = []", 'mode must be one of "always", "when_free" and "when_away".'),
        ("run_on_battery = 1", "run_on_battery must be true or false."),
        ("away_after_s = 0", "away_after_s must be a number of seconds from 1 to 86400."),
        ("away_after_s = nan", "away_after_s must be a number of seconds from 1 to 86400."),
        ("away_after_s = true", "away_after_s must be a number of seconds from 1 to 86400."),
        ("other_gpu_percent = 101", "other_gpu_percent must be a whole number from 1 to 100."),
        ("max_temperature_c = 39", "max_temperature_c must be a whole number from 40 to 110."),
        ("max_layers = 0", "max_layers must be a whole number from 1 to 100000."),
        ('programs = "blender"', "programs must be a list of at most 64 program names"),
        (f"programs = {['x'] * 65}", "programs must be a list of at most 64 program names"),
        (f"programs = ['{'x' * 65}']", "programs must be a list of at most 64 program names"),
        ("hours = 20", 'hours must be a time of day such as "20:00-07:30".'),
        ('hours = "20:00"', 'hours must be a time of day such as "20:00-07:30".'),
        ('hours = "24:00-07:00"', 'hours must be a time of day such as "20:00-07:30".'),
        ('hours = "20:60-07:00"', 'hours must be a time of day such as "20:00-07:30".'),
        ("max_memory = 8", 'max_memory must be a size in quotes, such as "6GB" or "512MiB".'),
        ('max_memory = "8"', 'max_memory must be a size in quotes, such as "6GB" or "512MiB".'),
        ('max_memory = "-8GB"', 'max_memory must be a size in quotes, such as "6GB" or "512MiB".'),
        ('max_disk = "0GB"', 'max_disk must be a size in quotes, such as "6GB" or "512MiB".'),
        ('max_disk = "9999999999TB"', 'max_disk must be a size in quotes, such as "6GB" or "512MiB".'),
        ("max_memory_gb = 8", "max_memory_gb is no setting (did you mean max_memory?)."),
    ],
)
def test_a_wrong_default_for_machines_is_one_sentence(line: str, words: str) -> None:
    assert refusal(f"[defaults]\n{line}").startswith(f"pool.toml: [defaults] {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 1", "'port' stands before the first section"),
        ("[pol]\nport = 1", "there is no section [pol]"),
        ("[[pool]]\nport = 1", "pool must be a section: write [pool]"),
        ("[pool]\nport = 1\nport = 2", "is not valid TOML"),
        ("[pool\n", "is not valid TOML"),
        ("[pool]\nname = 'a", "(at"),
        (f"[pool]\nname = {'[' * 20_000}", "nested too deeply"),
        (f"#{' ' * MAX_FILE_BYTES}", "is larger than"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(text: str, words: str) -> None:
    sentence = refusal(text)
    assert sentence.startswith("pool.toml")
    assert words in sentence
    assert "\n" not in sentence
    assert len(sentence) < 300


def test_a_file_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pool\.toml must be UTF-8 text"):
        parse_settings(b"[pool]\nname = '\xff'", FOLDER)


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_whatever_the_file_holds_the_answer_is_settings_or_a_sentence(content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else b"[pool]\n" + content.encode(errors="replace")
    try:
        PoolConfig(FOLDER, **parse_settings(data, FOLDER))
    except ConfigError as error:
        assert "\n" not in str(error)


# ---------------------------------------------------------------- file and command line


def test_without_a_file_nothing_is_decided(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == {}
    assert load_config(tmp_path, {}) == PoolConfig(tmp_path)


def test_the_command_line_wins_over_the_file_and_it_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[pool]\nport = 1\nname = "File"\n')
    config = load_config(tmp_path, {"port": 2, "models": ("a",)})
    assert (config.port, config.pool_name, config.models, config.host) == (2, "File", ("a",), "127.0.0.1")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").mkdir()
    with pytest.raises(ConfigError, match=r"Cannot read .*pool\.toml: Is a directory"):
        read_settings(tmp_path)


# ---------------------------------------------------------------- [answers]


def test_how_long_answers_are_kept_is_a_setting_each() -> None:
    data = b"[answers]\ngrace_s = 5\nunread_s = 0\nretention_s = 86400.0\n"
    assert parse_settings(data, Path("/pool")) == {"answers": AnswerTimes(5.0, 0.0, 86_400.0)}
    assert PoolConfig(Path("/pool")).answers == AnswerTimes()
    with pytest.raises(ConfigError, match=r"\[answers\] retention_s must be a number of seconds from 0 to 86400"):
        parse_settings(b"[answers]\nretention_s = 86401", Path("/pool"))


# ---------------------------------------------------------------- [plan]


def test_floors_and_diversity_are_read() -> None:
    data = b'[plan]\nreplicas = { "owner/name" = 2, tiny = 0 }\nkeep_apart = true\n'
    assert parse_settings(data, Path("/pool")) == {"plan": PlanSettings({"owner/name": 2, "tiny": 0}, keeps_apart=True)}
    assert PoolConfig(Path("/pool")).plan == PlanSettings({}, keeps_apart=False)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("replicas = 2", 'replicas must be a table such as { "qwen3-8b" = 2 }'),
        ("replicas = { tiny = -1 }", "replicas: 'tiny' must be a whole number from 0 to 1000"),
        ("replicas = { tiny = 1.5 }", "replicas: 'tiny' must be a whole number"),
        ("replicas = { tiny = true }", "replicas: 'tiny' must be a whole number"),
        ('replicas = { "" = 1 }', "replicas: '' is no model's name"),
        ('replicas = { "a\\u0007b" = 1 }', "is no model's name"),
        ('keep_apart = "yes"', "keep_apart must be true or false"),
        ("keep_appart = true", "did you mean keep_apart"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_name(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(f"[plan]\n{line}\n".encode(), Path("/pool"))
    assert words in str(caught.value)
    assert str(caught.value).startswith("pool.toml: [plan] ")
