"""The systemd unit: what it starts, as whom, and what that may not do."""

from __future__ import annotations

import configparser
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config import ConfigError, PoolConfig
from coordinator.units import Program, coordinator_unit, this_program

PROGRAM = Program(("/opt/pool/bin/decentllm-coordinator",))
CONFIG = PoolConfig(Path("/var/lib/decentllm-coordinator"))


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",), strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser


def service(config: PoolConfig = CONFIG, program: Program = PROGRAM) -> configparser.SectionProxy:
    return parsed(coordinator_unit(config, program))["Service"]


def test_it_serves_the_given_folder_as_a_user_of_its_own() -> None:
    unit = service()
    assert unit["ExecStart"] == f"{PROGRAM.words[0]} serve --data-dir /var/lib/decentllm-coordinator"
    assert (unit["User"], unit["DynamicUser"]) == ("decentllm-coordinator", "no")


def test_it_waits_for_the_network_and_comes_back_after_a_failure() -> None:
    unit = parsed(coordinator_unit(CONFIG, PROGRAM))
    assert unit["Unit"]["After"] == "network-online.target"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_it_may_write_to_its_folder_and_to_nothing_else() -> None:
    unit = service()
    assert (unit["ProtectSystem"], unit["ReadWritePaths"]) == ("strict", "/var/lib/decentllm-coordinator")
    assert (unit["NoNewPrivileges"], unit["PrivateTmp"], unit["ProtectHome"]) == ("yes", "yes", "yes")
    assert unit["CapabilityBoundingSet"] == ""


def test_a_port_below_1024_brings_the_one_capability_that_it_needs() -> None:
    assert service(replace(CONFIG, port=443))["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    assert service(replace(CONFIG, port=0))["AmbientCapabilities"] == ""


@pytest.mark.parametrize(
    ("config", "program"),
    [
        (replace(CONFIG, data_dir=Path("/home/ada/pool")), PROGRAM),
        (replace(CONFIG, models=("/home/ada/models/qwen",)), PROGRAM),
        (replace(CONFIG, tls_certificate=Path("/root/chain.pem")), PROGRAM),
        (CONFIG, Program(("/home/ada/venv/bin/decentllm-coordinator",))),
        (CONFIG, Program(PROGRAM.words, ("/usr", "/home/ada/.local/python"))),
    ],
)
def test_homes_are_readable_only_where_something_it_needs_is_in_one(config: PoolConfig, program: Program) -> None:
    assert service(config, program)["ProtectHome"] == "read-only"


def test_words_with_blanks_and_specifiers_stay_what_they_are() -> None:
    unit = service(replace(CONFIG, data_dir=Path("/srv/100%")), Program(('/opt/my "pool"/$bin/python', "-m", "x")))
    assert unit["ExecStart"] == '"/opt/my \\"pool\\"/$$bin/python" -m x serve --data-dir /srv/100%%'
    assert unit["ReadWritePaths"] == "/srv/100%%"


@pytest.mark.parametrize("folder", ["/srv/my pool", "/srv/a\nb", '/srv/"', "/tmp/pool", "/var/tmp/pool"])
def test_a_folder_that_a_unit_cannot_have_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError):
        coordinator_unit(replace(CONFIG, data_dir=Path(folder)), PROGRAM)


def test_no_line_is_broken_by_what_comes_from_outside() -> None:
    with pytest.raises(ConfigError, match="control character"):
        coordinator_unit(CONFIG, Program(("/opt/a\nExecStartPre=/bin/sh",)))


def test_the_console_script_is_started_where_there_is_one(tmp_path: Path) -> None:
    script = tmp_path / "decentllm-coordinator"
    script.touch(0o755)
    assert this_program(str(script)).words == (str(script),)


@pytest.mark.parametrize("argv0", ["", "decentllm-coordinator", "/nowhere/decentllm-coordinator", "/x/__main__.py"])
def test_else_python_is_started_with_the_module(argv0: str) -> None:
    assert this_program(argv0).words == (sys.executable, "-P", "-m", "coordinator")
    with pytest.raises(ConfigError, match="Python"):
        this_program(argv0, executable="")
