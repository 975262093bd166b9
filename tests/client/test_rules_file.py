"""Rules in a file: read strictly, refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import rules_file
from client.errors import RulesFileError
from client.rules_file import MAX_FILE_BYTES, read_rules
from protocol.pause import Hours, PauseMode, PauseRules

ALL = """
mode = "when_away"
run_on_battery = true
away_after_s = 90
other_gpu_percent = 30
min_free_gpu_memory = "2GiB"
max_temperature_c = 75
programs = ["blender", "obs"]
hours = "22:00-7:30"
"""


def rules_of(folder: Path, content: str | bytes) -> PauseRules:
    path = folder / "rules.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rules(path)


def test_every_rule_is_read(tmp_path: Path) -> None:
    assert rules_of(tmp_path, ALL) == PauseRules(
        mode=PauseMode.WHEN_AWAY,
        run_on_battery=True,
        away_after_s=90.0,
        other_gpu_percent=30,
        min_free_gpu_bytes=2 * 2**30,
        max_temperature_c=75,
        programs=("blender", "obs"),
        hours=Hours(22 * 60, 7 * 60 + 30),
    )


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    example = [line for line in (rules_file.__doc__ or "").splitlines() if " = " in line]
    assert len(example) == len(ALL.strip().splitlines())
    assert rules_of(tmp_path, "\n".join(example)).hours == Hours(22 * 60, 7 * 60)


def test_what_is_not_in_the_file_is_not_decided(tmp_path: Path) -> None:
    assert rules_of(tmp_path, "") == PauseRules()
    assert rules_of(tmp_path, "max_temperature_c = 70") == PauseRules(max_temperature_c=70)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('mode = "never"', 'mode must be one of "always", "when_free" and "when_away"'),
        ("mode = 1", "mode must be one of"),
        ("run_on_battery = 1", "run_on_battery must be true or false"),
        ('run_on_battery = "yes"', "run_on_battery must be true or false"),
        ("away_after_s = 0", "away_after_s must be a number of seconds from 1 to 86400"),
        ("away_after_s = nan", "away_after_s must be a number of seconds"),
        ("other_gpu_percent = 0", "other_gpu_percent must be a whole number from 1 to 100"),
        ("other_gpu_percent = 2.5", "other_gpu_percent must be a whole number"),
        ("other_gpu_percent = true", "other_gpu_percent must be a whole number"),
        ('min_free_gpu_memory = "lots"', 'min_free_gpu_memory must be a size in quotes, such as "2GiB"'),
        ("min_free_gpu_memory = 100", "min_free_gpu_memory must be a size in quotes"),
        ("max_temperature_c = 111", "max_temperature_c must be a whole number from 40 to 110"),
        ('programs = "blender"', "programs must be a list of at most 64 program names"),
        ('programs = [""]', "programs must be a list"),
        ("programs = [1]", "programs must be a list"),
        (f"programs = {['x'] * 65}", "programs must be a list of at most 64"),
        ('hours = "22:00"', 'hours must be a time of day such as "22:00-07:00"'),
        ('hours = "24:00-07:00"', "hours must be a time of day"),
        ('hours = "22:60-07:00"', "hours must be a time of day"),
        ("hours = [1320, 420]", "hours must be a time of day"),
        ("max_temperature = 80", "there is no rule 'max_temperature'; there are mode, run_on_battery,"),
        ("[rules]", "there is no rule 'rules'"),
        ("min_free_gpu_bytes = 1000", "there is no rule 'min_free_gpu_bytes'"),
        ("mode =", "is not valid TOML"),
        ("mode = 'a'\nmode = 'b'", "is not valid TOML"),
        ("x = " + "[" * 5000, "nested too deeply|not valid TOML"),
        ("#" * (MAX_FILE_BYTES + 1), f"is longer than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(RulesFileError, match=sentence) as caught:
        rules_of(tmp_path, line)
    assert str(caught.value).startswith(str(tmp_path / "rules.toml"))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulesFileError, match="must be UTF-8 text"):
        rules_of(tmp_path, b"\xff\xfe")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulesFileError, match="cannot be read: No such file"):
        read_rules(tmp_path / "nothing.toml")
    with pytest.raises(RulesFileError, match="cannot be read: Is a directory"):
        read_rules(tmp_path)
