"""The command: whatever people do wrong is one sentence and status 2, never a traceback."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
import pytest

from coordinator.__main__ import main
from coordinator.config import MachineNames, PoolConfig, make_site
from coordinator.settings_file import load_config
from coordinator.simulate.errors import ImpossibleCommand
from coordinator.site_file import write_site
from coordinator.store import Store
from protocol.join_link import parse_join_link
from protocol.pause import PoolDefaults
from shell.tls import CERTIFICATE_NAME, pinned_context

LIMIT_S = 120
COMMAND = [sys.executable, "-m", "coordinator"]
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DECENTLLM_COORDINATOR_DATA_DIR": str(data_dir), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )


def sentence_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error."""
    assert ended.returncode == 2, ended.stderr
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("decentllm-coordinator: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return line


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = sentence_of(run("serve", "--port", port, data_dir=tmp_path))
    assert f"port {port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "a b"], "--host must be an address to listen on"),
        (["--name", "<b>"], "--name"),
        (["--public-url", "pool"], "--public-url must be an address"),
        (["--behind-proxy"], "--behind-proxy needs --public-url https://"),
        (["--tls-cert", "/nowhere/c.pem"], "give both --tls-cert and --tls-key"),
        (["--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem"], "Cannot read the certificate /nowhere/c.pem"),
        (["--port", "0", "--model", "/nowhere/model"], "/nowhere/model"),
        (["--port", "0", "--model", "."], "cannot be served"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in sentence_of(run("serve", *arguments, data_dir=tmp_path))


def test_a_broken_model_file_is_one_sentence(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF nonsense")
    ended = run("model", "add", str(model), data_dir=tmp_path / "data")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("decentllm-coordinator: model.gguf could not be converted")
    assert "Traceback" not in ended.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr("coordinator.models.catalog.Catalog.add", full)
    assert main(["model", "add", "owner/name", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"decentllm-coordinator: No space left on device: {tmp_path}\n"


@pytest.mark.parametrize("port", ["abc", "-1", "65536", "8000.5", ""])
def test_a_port_that_is_no_number_is_refused(
    tmp_path: Path, port: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", f"--port={port}"])
    assert caught.value.code == 2
    assert "is not a port number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["init", "--help"],
        ["serve", "--help"],
        ["invite", "--help"],
        ["model", "add", "--help"],
        ["plan", "--help"],
        ["simulate", "--help"],
    ],
)
def test_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "usage: decentllm-coordinator" in capsys.readouterr().out


def test_an_empty_catalog_says_how_to_fill_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "list", "--data-dir", str(tmp_path)]) == 0
    assert "model add" in capsys.readouterr().out
    assert main(["model", "remove", "nothing", "--data-dir", str(tmp_path)]) == 0


# ---------------------------------------------------------------- init


def test_init_writes_a_file_that_unit_and_serve_read_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "Lab", "--model", "owner/name", "--host", "0.0.0.0", "--port", "8443", "--invite-only"]
    words += ["--public-url", "https://pool.example.org:443/"]
    assert main(["init", "--data-dir", str(tmp_path), *words]) == 0
    assert f"decentllm-coordinator serve --data-dir {tmp_path}" in capsys.readouterr().out
    assert load_config(tmp_path, {}) == PoolConfig(
        tmp_path,
        host="0.0.0.0",
        port=8443,
        pool_name="Lab",
        models=("owner/name",),
        is_open=False,
        public_url="https://pool.example.org",
        defaults=PoolDefaults(),
    )


def test_init_replaces_nothing_unless_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--data-dir", str(tmp_path), "--port", "1"]) == 0
    assert main(["init", "--data-dir", str(tmp_path), "--port", "2"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["init", "--data-dir", str(tmp_path), "--port", "2", "--force"]) == 0
    assert load_config(tmp_path, {}).port == 2


def test_init_asks_nothing_where_nobody_can_answer(tmp_path: Path) -> None:
    ended = run("init", data_dir=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert load_config(tmp_path, {}) == PoolConfig(tmp_path, defaults=PoolDefaults())


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Someone who types these lines and then ends the input; the questions are in the list that is returned."""
    questions: list[str] = []
    lines = iter(answers)

    def ask(question: str) -> str:
        questions.append(question)
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", ask)
    return questions


def test_init_asks_a_person_for_name_model_and_who_may_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, "Lab", "owner/name", "invited")
    assert main(["init", "--data-dir", str(tmp_path)]) == 0
    config = load_config(tmp_path, {})
    assert (config.pool_name, config.models, config.is_open) == ("Lab", ("owner/name",), False)


def test_init_asks_nothing_when_something_was_given_or_a_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = on_a_terminal(monkeypatch)
    assert main(["init", "--data-dir", str(tmp_path), "--open"]) == 0
    assert main(["init", "--data-dir", str(tmp_path)]) == 2
    assert questions == []


def test_who_ends_the_questions_gets_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, "Lab")
    assert main(["init", "--data-dir", str(tmp_path)]) == 130
    assert not (tmp_path / "pool.toml").exists()


# ---------------------------------------------------------------- the file and the command line


@pytest.mark.parametrize("command", [["serve"], ["unit"]])
def test_a_wrong_line_of_the_file_is_named(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool.toml").write_text("[pool]\nport = 99999\n")
    assert main([*command, "--data-dir", str(tmp_path)]) == 2
    sentence = "pool.toml: [pool] port must be a whole number from 0 to 65535."
    assert capsys.readouterr().err == f"decentllm-coordinator: {sentence}\n"


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> PoolConfig:
    """What `serve` would run with."""
    configs: list[PoolConfig] = []
    monkeypatch.setattr("coordinator.app.serve", lambda config, with_operator_link: configs.append(config))
    assert main(["serve", *arguments]) == 0
    return configs[0]


def test_serve_takes_the_command_line_over_the_file_over_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool.toml").write_text('[pool]\nname = "Lab"\nport = 1\nopen = false\nmodels = ["a/b", "c/d"]\n')
    folder = ("--data-dir", str(tmp_path))
    assert served(monkeypatch, *folder) == PoolConfig(
        tmp_path, port=1, pool_name="Lab", models=("a/b", "c/d"), is_open=False
    )
    config = served(
        monkeypatch, *folder, "--port", "0", "--model", "e/f", "--open", "--tls-cert", "c", "--tls-key", "k"
    )
    assert (config.port, config.models, config.is_open) == (0, ("e/f",), True)
    assert (config.tls_certificate, config.tls_key) == (Path("c"), Path("k"))
    assert (config.pool_name, config.host) == ("Lab", "127.0.0.1")


def test_a_pool_cannot_be_open_and_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--data-dir", str(tmp_path), "--open", "--invite-only"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_unit_prints_a_unit_for_this_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", "--data-dir", "/srv/no-such-pool"]) == 0
    assert "serve --data-dir /srv/no-such-pool\n" in capsys.readouterr().out


# ---------------------------------------------------------------- links, invitations, keys


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """The folder of a pool that has run."""
    Store.open(tmp_path / "pool.sqlite3").close()
    write_site(tmp_path, make_site(PoolConfig(tmp_path, is_open=False), 8000, "", MachineNames()))
    return tmp_path


ACCOUNT_COMMANDS = [
    ["operator-link"], ["invite"], ["invitations"], ["key"], ["keys"], ["revoke", "x"], ["nodes"], ["plan"],
]  # fmt: skip


@pytest.mark.parametrize("command", ACCOUNT_COMMANDS, ids=lambda command: str(command[0]))
def test_a_folder_without_a_pool_is_one_sentence(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--data-dir", str(tmp_path)]) == 2
    assert "No pool has run in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def said(capsys: pytest.CaptureFixture[str], pool: Path, *arguments: str) -> str:
    assert main([*arguments, "--data-dir", str(pool)]) == 0
    return capsys.readouterr().out


def test_an_invitation_is_made_listed_and_revoked(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = said(capsys, pool, "invite", "--label", "friends", "--uses", "3", "--days", "0", "--no-nodes")
    assert "Chat page: http://127.0.0.1:8000/#invite=in-" in made
    assert "until it is revoked" in made
    invitation_id = made.split()[1].rstrip(",")
    assert "friends" in said(capsys, pool, "invitations")
    assert said(capsys, pool, "revoke", invitation_id) == f"Invitation {invitation_id} is revoked.\n"
    assert "revoked" in said(capsys, pool, "invitations")


def test_a_key_is_made_listed_and_revoked(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = said(capsys, pool, "key", "--label", "laptop", "--days", "1.5").splitlines()[1]
    assert secret.startswith("sk-")
    listed = said(capsys, pool, "keys")
    assert "laptop" in listed
    assert secret not in listed
    assert "is revoked" in said(capsys, pool, "revoke", secret.split("-")[1])


def test_links_for_the_operator_and_the_list_of_machines(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "http://127.0.0.1:8000/operator#token=op-" in said(capsys, pool, "operator-link")
    assert said(capsys, pool, "nodes") == "No machine has joined yet.\n"


def test_what_the_accounts_refuse_is_one_sentence(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revoke", "nothing", "--data-dir", str(pool)]) == 2
    assert main(["invite", "--no-chat", "--no-nodes", "--data-dir", str(pool)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["decentllm-coordinator"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["invite", "--uses", "0"], "is not a whole number from 1 to"),
        (["invite", "--uses", "-1"], "is not a whole number from 1 to"),
        (["invite", "--uses", "²"], "is not a whole number from 1 to"),
        (["invite", "--days", "nan"], "is not a number of days from 0 to 3650"),
        (["invite", "--days", "-1"], "is not a number of days from 0 to 3650"),
        (["key", "--days", "4000"], "is not a number of days from 0 to 3650"),
        (["key", "--label", ""], "a label has 1 to 64 characters"),
        (["invite", "--label", "a\nb"], "a label has 1 to 64 characters"),
        (["revoke"], "ID"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_damaged_database_is_one_sentence(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pool / "pool.sqlite3").write_bytes(b"no database" * 1000)
    assert main(["keys", "--data-dir", str(pool)]) == 2
    assert "damaged or no database" in capsys.readouterr().err


# ---------------------------------------------------------------- a running pool


@contextmanager
def running(
    data_dir: Path, *arguments: str, shows: str = "Operator page (one sign-in)", with_link: bool = True
) -> Iterator[dict[str, str]]:
    """A pool in a process of its own: what it said, by the words before the colon. It is stopped by Ctrl-C."""
    with serving(data_dir, *arguments, with_link=with_link) as child:
        try:
            assert child.stdout is not None
            yield said_until(child.stdout, shows)
        finally:
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=LIMIT_S)
    assert "Traceback" not in errors
    assert child.returncode in (0, 130)


def serving(data_dir: Path, *arguments: str, with_link: bool = True) -> subprocess.Popen[str]:
    link = ["--operator-link"] if with_link else []
    environment = os.environ | {"DECENTLLM_COORDINATOR_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *link, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said_until(output: IO[str], last: str) -> dict[str, str]:
    lines: dict[str, str] = {}
    for line in output:
        name, _, value = line.rstrip("\n").partition(": ")
        lines[name] = value
        if name == last:
            break
    return lines


def test_a_pool_without_a_model_starts_on_this_machine_and_says_how_to_go_on(tmp_path: Path) -> None:
    with running(tmp_path) as lines:
        url = lines["Chat page"].rstrip("/")
        assert next(iter(lines)).startswith("This pool has no model yet")
        assert url.startswith("http://127.0.0.1:")
        assert lines["Contribute a machine"] == f"decentllm node run --join '{lines['Join link']}'"
        assert parse_join_link(lines["Join link"]).url == url
        token = lines["Operator page (one sign-in)"].partition("#token=")[2]
        with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
            assert "server" not in client.get("/healthz").headers
            answer = client.post("/api/session", json={"token": token}, headers={"Origin": url})
            assert answer.json()["role"] == "operator"
            key = run("key", data_dir=tmp_path).stdout.splitlines()[1]
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_service_s_log_gets_no_secrets(tmp_path: Path) -> None:
    with running(tmp_path, "--invite-only", shows="Operator page", with_link=False) as lines:
        assert "decentllm-coordinator operator-link" in lines["Operator page"]
        assert not any("token=" in value or "invite=" in value for value in lines.values())


def test_a_closed_pool_for_others_is_reached_by_its_fingerprint_only(tmp_path: Path) -> None:
    with running(tmp_path, "--host", "0.0.0.0", "--invite-only") as lines:
        link = parse_join_link(lines["Join link"])
        assert link.invite
        assert "#invite=" in lines["Invitation to the chat page"]
        port = urlsplit(link.url).port
        assert port is not None
        context = asyncio.run(pinned_context("127.0.0.1", port, link.pin))
        extensions = {"sni_hostname": CERTIFICATE_NAME}
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=LIMIT_S) as client:
            assert client.get("/healthz", extensions=extensions).status_code == 200
            assert client.get("/v1/models", extensions=extensions).status_code == 401
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"https://127.0.0.1:{port}/healthz")


def test_a_second_pool_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as lines:
        line = sentence_of(run("serve", "--port", "0", data_dir=tmp_path))
        assert f"Another coordinator runs in {tmp_path}" in line
        assert httpx.get(f"{lines['Chat page']}healthz", timeout=LIMIT_S).status_code == 200


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_a_request_that_never_ends_does_not_keep_the_pool_from_ending_and_leaves_no_traceback(
    tmp_path: Path, signals: list[signal.Signals]
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(tmp_path) as child:
        assert child.stdout is not None
        url = said_until(child.stdout, "Operator page (one sign-in)")["Chat page"]
        port = urlsplit(url).port or 0
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as talker:
            talker.sendall(head + b"Content-Length: 99\r\n\r\n{")
            assert httpx.get(f"{url}healthz", timeout=LIMIT_S).status_code == 200
            for number in signals:
                child.send_signal(number)
            _, errors = child.communicate(timeout=LIMIT_S)
    assert errors == ""


# ---------------------------------------------------------------- plan and simulate


def test_a_running_pool_shows_its_plan_also_over_tls_by_its_own_certificate(tmp_path: Path) -> None:
    with running(tmp_path / "plain"):
        assert "Nothing is planned" in run("plan", data_dir=tmp_path / "plain").stdout
    with running(tmp_path / "tls", "--host", "0.0.0.0", "--invite-only", "--name", "Lab"):
        assert "Lab: 0 devices" in run("plan", data_dir=tmp_path / "tls").stdout
        assert "No node is called" in sentence_of(run("plan", "--explain", "ada", data_dir=tmp_path / "tls"))
    assert "is not running" in sentence_of(run("plan", data_dir=tmp_path / "tls"))


def test_a_plan_is_explained_or_given_to_programs_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--explain", "--json"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(("scenario", "words"), [("nope", "There is no scenario 'nope'"), ("none.toml", "Cannot read")])
def test_a_scenario_that_cannot_be_is_one_sentence(
    scenario: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", scenario]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("decentllm-coordinator: ")
    assert words in said.err
    assert said.out == ""


def test_a_command_of_the_policy_that_no_node_could_carry_out_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impossible(*_: object) -> None:
        raise ImpossibleCommand("A chain has a hole.")

    monkeypatch.setattr("coordinator.simulate.engine.run", impossible)
    assert main(["simulate", "lan-8b-10"]) == 2
    assert capsys.readouterr().err == "decentllm-coordinator: A chain has a hole.\n"


@pytest.mark.parametrize("command", [["--version"], ["model", "list"], ["unit"]])
def test_other_commands_do_not_wait_for_the_simulator_or_the_scheduler(tmp_path: Path, command: list[str]) -> None:
    program = "import sys; from coordinator.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    program += "assert not {'coordinator.simulate', 'numpy', 'matplotlib'} & set(sys.modules), 'too much'"
    folder = [] if command == ["--version"] else ["--data-dir", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-c", program, *command, *folder], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
