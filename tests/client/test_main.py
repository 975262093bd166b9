"""The command `decentllm`: what a person typed wrong gets one sentence and status 2, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.__main__ import _parser as parser
from client.__main__ import clean_name, main, node_config
from protocol.messages import Hello, decode_node_message, encode_message
from protocol.values import DeviceId, DeviceKind, DeviceSpec, Variant

REPOSITORY = Path(__file__).parents[2]
RUN = ("node", "run", "--join", "http://127.0.0.1:1")

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
        (("node", "run", "--join", "ftp://pool"), "The pool's address must look like http://host:port."),
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


@pytest.mark.parametrize("words", [["node"], ["node", "walk"], ["node", "run"], ["fly"]])
def test_an_incomplete_command_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "http://user:secret@pool", "http://pool:99999", "http://po ol", "\udcff"])
def test_a_bad_address_is_refused_with_status_2(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "run", "--join", address]) == 2
    error = capsys.readouterr().err
    assert error.startswith("decentllm: The pool's address ")
    assert "secret" not in error


def test_every_option_reaches_the_settings(tmp_path: Path) -> None:
    words = [
        "--name",
        "box",
        "--max-memory",
        "6GB",
        "--max-layers",
        "7",
        "--cpu",
        "--worker-python",
        "/p",
        "--attached",
    ]
    config = node_config(parser().parse_args([*RUN, "--data-dir", str(tmp_path / "new"), *words]))
    assert (config.join_url, config.name, config.worker_python) == ("http://127.0.0.1:1", "box", "/p")
    assert (config.max_memory_bytes, config.max_layers) == (6 * 10**9, 7)
    assert (config.use_gpu, config.attached) == (False, True)
    assert (config.data_dir.is_dir(), config.data_dir) == (True, tmp_path / "new")


def test_the_folder_may_be_named_before_the_command(tmp_path: Path) -> None:
    arguments = parser().parse_args(["--data-dir", str(tmp_path), *RUN])
    assert node_config(arguments).data_dir == tmp_path


@pytest.mark.parametrize("name", ["", "   ", "box", "<script>", "a\x00b\u202e", "日本", "x" * 500, "\udcff", "'\"&<>"])
def test_any_name_is_made_fit_for_the_wire(name: str) -> None:
    cpu = DeviceSpec(DeviceId("cpu"), DeviceKind.CPU, "cpu", 1, Variant.FLOAT32)
    hello = Hello(1, "a" * 32, "1.0", clean_name(name), (cpu,))
    assert decode_node_message(encode_message(hello)) == hello
