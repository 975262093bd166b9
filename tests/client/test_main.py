"""The command `decentllm`: what a person typed wrong gets one sentence and status 2, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client.__main__ import agent_arguments, clean_name, main, node_config, split_offered_link
from client.arguments import JOIN_VARIABLE, parser
from client.config import Direct
from client.facts import decode_facts
from protocol.join_link import JoinLink
from protocol.messages import Hello, decode_node_message, encode_message
from protocol.pause import PauseMode
from protocol.values import DeviceId, DeviceKind, DeviceSpec, Variant

REPOSITORY = Path(__file__).parents[2]
RUN = ("node", "run", "--join", "http://127.0.0.1:1")
LINK = f"decentllm://pool.example:8443/join?pin={'0' * 64}&invite=secret-invitation"
JOIN = JoinLink("https://pool.example:8443", "0" * 64, "secret-invitation")

HELP_AND_MODULES = """
import sys
from client.__main__ import main
try:
    main(["node", "run", "--help"])
finally:
    print(*sys.modules)
"""


def decentllm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client", *words]
    return subprocess.run(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


# ---------------------------------------------------------------- as a process


def test_the_node_command_is_explained_without_importing_what_it_would_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_AND_MODULES], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--max-memory" in done.stdout
    assert not {"torch", "PySide6", "asyncio", "client.agent.main"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("node", "run", "--join", "ftp://pool"), "A pool's link begins with decentllm://, https:// or http://."),
        (("node", "run"), "Give the pool's join link with --join, or in the variable DECENTLLM_JOIN."),
        (("node", "run", LINK), "A node is given its pool's link with --join."),
        ((*RUN, "--rules-file", "/no/such/file"), "/no/such/file cannot be read: No such file or directory."),
        ((*RUN, "--data-dir", "/dev/null/x"), "The folder /dev/null/x cannot be used: Not a directory."),
    ],
)
def test_what_cannot_be_used_ends_with_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    done = decentllm(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"decentllm: {sentence}\n")


# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["node", "--help"], ["node", "run", "-h"]])
def test_help_is_given_with_status_0(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: decentllm")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-memory", "lots"], "'lots' is not a size; write it like 6GB, 512MiB or 2000000000"),
        (["--max-memory", "0"], "out of range"),
        (["--max-memory", "9" * 400], "out of range"),
        (["--max-layers", "0"], "'0' is not a whole number from 1 to 999999"),
        (["--max-layers", "-1"], "'-1' is not a whole number from 1 to 999999"),
        (["--max-layers", "2.5"], "is not a whole number"),
        (["--max-layers", "²"], "is not a whole number"),
        (["--max-layers", "9" * 5000], "is not a whole number"),
        (["--max-disk", "some"], "'some' is not a size"),
        (["--direct", "maybe"], "invalid choice: 'maybe'"),
        (["--pause-mode", "never"], "invalid choice: 'never'"),
        (["--no-such-option"], "unrecognized arguments"),
        (["--api-key", "sk-secret"], "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_named_with_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*RUN, *words])
    assert caught.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("decentllm")
    assert sentence in last_line
    assert len(last_line) < 250


@pytest.mark.parametrize("words", [["node"], ["node", "walk"], ["fly"], ["node", "unit", "--join", "x"]])
def test_an_incomplete_command_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://user:secret@pool", "http://pool:99999", "http://po ol", "\udcff"])
def test_a_bad_address_is_refused_with_status_2(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "run", "--join", address]) == 2
    error = capsys.readouterr().err
    assert error.startswith("decentllm: The ")
    assert error.count("\n") == 1
    assert "secret" not in error


def test_every_option_reaches_the_settings(tmp_path: Path) -> None:
    words = [
        "--name",
        "box",
        "--max-memory",
        "6GB",
        "--max-layers",
        "7",
        "--max-disk",
        "1TB",
        "--direct",
        "off",
        "--pause-mode",
        "always",
        "--cpu",
        "--worker-python",
        "/p",
        "--attached",
    ]
    config = node_config(parser().parse_args([*RUN, "--data-dir", str(tmp_path / "new"), *words]))
    assert (config.join_url, config.name, config.worker_python) == ("http://127.0.0.1:1", "box", "/p")
    assert (config.max_memory_bytes, config.max_layers) == (6 * 10**9, 7)
    assert (config.max_disk_bytes, config.direct, config.rules.mode) == (10**12, Direct.OFF, PauseMode.ALWAYS)
    assert (config.use_gpu, config.attached) == (False, True)
    assert (config.data_dir.is_dir(), config.data_dir) == (True, tmp_path / "new")


def test_a_pace_reaches_the_workers_and_is_in_no_help(capsys: pytest.CaptureFixture[str]) -> None:
    config = node_config(parser().parse_args([*RUN, "--pace", "2.50,0.5,0"]))
    assert config.pace == "2.5,0.5,0"
    assert node_config(parser().parse_args(RUN)).pace == ""
    for words in ([*RUN, "--pace", "fast"], ["node", "run", "--help"]):
        with pytest.raises(SystemExit):
            parser().parse_args(words)
        told = capsys.readouterr()
        assert "is no pace" in told.err or "--pace" not in told.out


def test_the_folder_may_be_named_before_the_command(tmp_path: Path) -> None:
    arguments = parser().parse_args(["--data-dir", str(tmp_path), *RUN])
    assert node_config(arguments).data_dir == tmp_path


@pytest.mark.parametrize("name", ["", "   ", "box", "<script>", "a\x00b\u202e", "日本", "x" * 500, "\udcff", "'\"&<>"])
def test_any_name_is_made_fit_for_the_wire(name: str) -> None:
    cpu = DeviceSpec(DeviceId("cpu"), DeviceKind.CPU, "cpu", 1, Variant.FLOAT32)
    hello = Hello(2, "a" * 32, "b" * 64, "c" * 128, "1.0", clean_name(name), (cpu,))
    assert decode_node_message(encode_message(hello)) == hello


# ---------------------------------------------------------------- the join link


def test_the_link_comes_from_the_environment_which_workers_do_not_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOIN_VARIABLE, LINK)
    arguments = parser().parse_args(["node", "run", "--data-dir", str(tmp_path)])
    assert node_config(arguments).join == JOIN
    assert JOIN_VARIABLE not in os.environ


def test_a_link_on_the_command_line_counts_more_and_the_other_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOIN_VARIABLE, LINK)
    arguments = parser().parse_args([*RUN, "--data-dir", str(tmp_path)])
    assert node_config(arguments).join == JoinLink("http://127.0.0.1:1")
    assert JOIN_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("words", "offered", "rest"),
    [
        ([], "", []),
        ([LINK], LINK, []),
        ([LINK.replace("decentllm:", "DECENTLLM:")], LINK.replace("decentllm:", "DECENTLLM:"), []),
        (["--hidden", LINK, "--cpu"], LINK, ["--hidden", "--cpu"]),
        (["--join", LINK], "", ["--join", LINK]),
        (["node", "run", "--join", LINK], "", ["node", "run", "--join", LINK]),
        (["https://pool.example"], "", ["https://pool.example"]),
    ],
)
def test_a_link_that_was_clicked_is_told_from_the_options(words: list[str], offered: str, rest: list[str]) -> None:
    assert split_offered_link(words) == (offered, rest)


def test_a_link_that_was_clicked_is_offered_in_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("client.app")
    opened: list[Any] = []
    monkeypatch.setattr(app, "run_gui", lambda settings: opened.append(settings) or 0)
    assert main([LINK]) == 0
    assert (opened[0].offered_link, opened[0].join_url, opened[0].start_contributing) == (JOIN, None, False)
    assert main([]) == 0
    assert opened[1].offered_link is None


def test_a_damaged_link_that_was_clicked_is_refused_without_being_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decentllm://pool/join?invite=secret.invitation"]) == 2
    error = capsys.readouterr().err
    assert "the link's invitation is damaged" in error.lower()
    assert "secret" not in error


# ---------------------------------------------------------------- a unit, the agent's words


def test_the_limits_of_the_app_are_passed_to_its_agent() -> None:
    words = ["--name", "my box", "--max-memory", "6GB", "--max-layers", "7", "--max-disk", "1TB", "--direct", "off"]
    arguments = parser().parse_args([*words, "--cpu"])
    passed = agent_arguments(arguments)
    again = parser().parse_args([*RUN, *passed])
    assert agent_arguments(again) == passed
    assert (again.max_disk, again.direct, again.cpu, again.name) == (10**12, "off", True, "my box")
    assert agent_arguments(parser().parse_args([])) == ()


def test_a_unit_is_printed_without_the_link(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(JOIN_VARIABLE, LINK)
    rules = tmp_path / "rules.toml"
    rules.write_text('mode = "always"')
    assert main(["node", "unit", "--max-memory", "6GB", "--rules-file", str(rules), "--pause-mode", "when_free"]) == 0
    text = capsys.readouterr().out
    assert f"--max-memory 6000000000 --rules-file {rules} --pause-mode when_free\n" in text
    assert "secret-invitation" not in text


def test_a_unit_with_rules_that_cannot_be_used_is_not_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('mode = "never"')
    assert main(["node", "unit", "--rules-file", str(rules)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert 'mode must be one of "always", "when_free" and "when_away"' in printed.err


def test_the_facts_are_one_line_of_json(tmp_path: Path) -> None:
    done = decentllm("node", "facts", "--cpu", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    facts = decode_facts(done.stdout.encode())
    assert done.stdout.count("\n") == 1
    assert facts.weights_folder.startswith(str(tmp_path))
