"""A node's systemd unit: a user of its own, the link nowhere in it, words that systemd reads as they were."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from client.service_unit import UNIT, UnitError, node_unit

PROGRAM = ("/opt/decentllm/decentllm",)


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_a_unit_runs_the_node_as_a_user_of_its_own_with_the_link_from_a_private_file() -> None:
    unit = settings(node_unit(PROGRAM, ("--max-memory", "6000000000")))
    assert unit["User"] == "decentllm"
    assert unit["ExecStart"] == (
        "/opt/decentllm/decentllm node run --data-dir /var/lib/decentllm --max-memory 6000000000"
    )
    assert unit["EnvironmentFile"] == "/etc/decentllm/node.env"
    assert unit["WantedBy"] == "multi-user.target"


def test_the_comment_says_how_to_keep_the_link_private() -> None:
    comment = [line for line in node_unit(PROGRAM, ()).splitlines() if line.startswith("#")]
    assert any("install -m 0600 /dev/null /etc/decentllm/node.env" in line for line in comment)


def test_a_unit_is_hardened_but_leaves_the_gpu() -> None:
    unit = settings(node_unit(PROGRAM, ()))
    assert unit["ProtectSystem"] == "strict"
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["StateDirectoryMode"] == "0700"
    assert not {"PrivateDevices", "ProtectClock", "ProtectProc", "DevicePolicy"} & set(unit)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("my box", '"my box"'),
        ("100%", "100%%"),
        ("a$b", "a$$b"),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("semi;colon", '"semi;colon"'),
        ("", '""'),
    ],
)
def test_a_word_reaches_the_node_as_it_was(word: str, written: str) -> None:
    assert settings(node_unit(PROGRAM, ("--name", word)))["ExecStart"].endswith(f" --name {written}")


@pytest.mark.parametrize("word", ["a\nUser=root", "a\x00b", "a\rb"])
def test_a_word_that_would_end_its_line_is_refused(word: str) -> None:
    with pytest.raises(UnitError, match="control character"):
        node_unit(PROGRAM, ("--name", word))


@pytest.mark.parametrize(
    ("program", "reads", "protect_home"),
    [
        ("/opt/venv/bin/python", "/opt/venv", "yes"),
        ("/home/ada/venv/bin/python", "/usr", "read-only"),
        ("/opt/venv/bin/python", "/home/ada/src", "read-only"),
    ],
)
def test_homes_are_hidden_unless_the_program_lies_in_one(program: str, reads: str, protect_home: str) -> None:
    assert settings(node_unit((program,), (), [Path(reads)]))["ProtectHome"] == protect_home


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    path = tmp_path / UNIT
    path.write_text(node_unit(("/bin/true",), ("--name", "my 100% box")))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert "Unknown" not in done.stderr
    assert UNIT not in done.stderr.replace(f"{UNIT}: Command", "")
