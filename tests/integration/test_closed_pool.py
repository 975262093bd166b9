"""A pool by invitation, with a certificate of its own, on all addresses of this machine."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from demo.local_pool import ROOT, local_pool
from protocol.join_link import format_join_link, parse_join_link
from tests.integration.chromium import ANSWER_MS, ask, opened
from tests.integration.conftest import READY_S, Served, links_of
from tests.integration.reference import Reference

NODES = ("one", "two")
TWO_LAYERS = ("--cpu", "--max-layers", "2", "--direct", "on")
LIMIT_S = 120.0
NUM_TOKENS = 24
REFUSALS = ("401 (Unauthorized)", "403 (Forbidden)")
"""What Chromium writes to its console when the pool says no."""
WORKER_PROGRAM = ROOT / "tests" / "client" / "agent" / "worker_program.py"


@pytest.fixture(scope="module")
def closed_pool(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two nodes, each with half of a tiny model, that came in by one invitation; it is used up."""
    folder = tmp_path_factory.mktemp("closed-pool")
    options = ("--host", "0.0.0.0", "--invite-only", "--name", "Closed pool")
    with local_pool(folder, [str(tiny_folder)], *options) as pool:
        links = links_of(pool.command("invite", "--no-chat", "--uses", "2"))
        for name in NODES:
            pool.add_node(name, *TWO_LAYERS, join=links["Join link"])
        pool.wait_ready(READY_S)
        yield Served(pool, tiny_folder.name)


@pytest.fixture
def stranger(closed_pool: Served) -> Iterator[httpx.Client]:
    """Trusts the pool's certificate, and has nothing else."""
    trust = ssl.create_default_context(cafile=closed_pool.pool.data_dir / "tls" / "certificate.pem")
    with httpx.Client(base_url=closed_pool.pool.url, verify=trust, timeout=LIMIT_S) as client:
        yield client


def names_in(served: Served) -> list[str]:
    return sorted(node["name"] for node in served.pool.state()["nodes"])


def test_nodes_that_came_by_a_link_alone_answer_as_generate_does(closed_pool: Served, tiny_folder: Path) -> None:
    assert names_in(closed_pool) == sorted(NODES)
    assert closed_pool.tokens("hello", NUM_TOKENS) == Reference(tiny_folder).tokens("hello", NUM_TOKENS)
    assert len(closed_pool.complete("hi", max_tokens=1)["decentllm"]["nodes"]) == 2
    logs = [(closed_pool.pool.folder / f"{name}.log").read_text() for name in NODES]
    assert not any("relay" in log for log in logs), "their direct link, by TLS too, works"


def test_what_a_service_prints_and_logs_lets_nobody_in(closed_pool: Served) -> None:
    printed = "\n".join(closed_pool.pool.coordinator.lines)
    assert closed_pool.pool.join_link in printed
    logged = [log.read_text() for log in closed_pool.pool.folder.glob("*.log")]
    assert not [text for text in (printed, *logged) if "invite=" in text or "token=" in text]


def test_an_enrolled_node_comes_back_without_an_invitation(closed_pool: Served) -> None:
    pool = closed_pool.pool
    assert "invite" not in pool.join_link
    node = pool.nodes.pop()
    assert node.stop() == 0
    pool.wait_until(lambda state: len(state["nodes"]) == 1, READY_S)
    pool.add_node(node.name, *TWO_LAYERS)
    pool.wait_ready(READY_S)
    assert names_in(closed_pool) == sorted(NODES)
    assert len(pool.command("nodes").splitlines()) == 1 + len(NODES), "it is the machine that it was"


def test_after_a_restart_of_the_coordinator_its_nodes_are_there_again_by_themselves(closed_pool: Served) -> None:
    pool = closed_pool.pool
    before, pids = closed_pool.tokens("hello", NUM_TOKENS), [node.process.pid for node in pool.nodes]
    pool.restart_coordinator()
    pool.wait_ready(READY_S)
    assert [node.process.pid for node in pool.nodes] == pids
    assert names_in(closed_pool) == sorted(NODES)
    assert closed_pool.tokens("hello", NUM_TOKENS) == before


# ---------------------------------------------------------------- who is not let in


def join(link: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A newcomer, whose worker is never asked for anything."""
    python = folder / "worker-python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{WORKER_PROGRAM}" good "$@"\n')
    python.chmod(0o755)
    argv = [sys.executable, "-m", "client", "node", "run", "--cpu", "--name", "stranger", "--join", link]
    argv += ["--data-dir", str(folder / "data"), "--worker-python", str(python)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, check=False)


def assert_one_sentence(ended: subprocess.CompletedProcess[str], words: str) -> None:
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    sentence = ended.stderr.splitlines()[-1]
    assert sentence.startswith("decentllm: ")
    assert words in sentence


def test_a_node_whose_link_names_another_certificate_is_not_fooled(closed_pool: Served, tmp_path: Path) -> None:
    wrong = replace(parse_join_link(closed_pool.pool.join_link), pin="0" * 64)
    assert_one_sentence(join(format_join_link(wrong), tmp_path), "is not the pool that the join link names")


def test_a_node_without_an_invitation_is_refused(closed_pool: Served, tmp_path: Path) -> None:
    assert_one_sentence(join(closed_pool.pool.join_link, tmp_path), "invitation")
    assert names_in(closed_pool) == sorted(NODES)


def test_an_invitation_for_the_chat_brings_no_node(closed_pool: Served, tmp_path: Path) -> None:
    chat_link = links_of(closed_pool.pool.command("invite", "--no-nodes"))["Chat page"]
    token = chat_link.partition("#invite=")[2]
    link = replace(parse_join_link(closed_pool.pool.join_link), invite=token)
    assert_one_sentence(join(format_join_link(link), tmp_path), "invitation")


@pytest.mark.parametrize("path", ["/pool", "/v1/models", "/weights/any", "/docs", "/api/operator/overview"])
def test_a_stranger_reads_nothing(closed_pool: Served, stranger: httpx.Client, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code in (401, 403)
    assert closed_pool.model not in answer.text


def test_the_chat_api_needs_a_key_that_holds(closed_pool: Served, stranger: httpx.Client) -> None:
    body, path = closed_pool.body("hi", max_tokens=2), "/v1/chat/completions"
    refused = stranger.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "sign_in_needed")
    key_id, secret = new_key(closed_pool)
    good, bad = {"Authorization": f"Bearer {secret}"}, {"Authorization": f"Bearer {secret[:-1]}!"}
    assert stranger.post(path, json=body, headers=bad).json()["error"]["code"] == "bad_key"
    assert stranger.post(path, json=body, headers=good).json()["usage"]["completion_tokens"] == 2
    closed_pool.pool.command("revoke", key_id)
    assert stranger.post(path, json=body, headers=good).status_code == 401


def test_an_invitation_for_nodes_lets_nobody_chat(closed_pool: Served, stranger: httpx.Client) -> None:
    link = links_of(closed_pool.pool.command("invite", "--no-chat"))["Join link"]
    answer = stranger.post("/api/session", json={"token": parse_join_link(link).invite})
    assert answer.status_code == 403
    assert stranger.get("/api/session").json()["can_chat"] is False


def new_key(served: Served) -> tuple[str, str]:
    """Its id and its secret."""
    said, secret = served.pool.command("key", "--label", "a program").splitlines()
    return said.split()[1].rstrip(","), secret


# ---------------------------------------------------------------- the chat page


def test_an_invitation_opens_the_chat_page_until_one_signs_out(closed_pool: Served, browser: Browser) -> None:
    link = links_of(closed_pool.pool.command("invite", "--no-nodes", "--uses", "1"))["Chat page"]
    assert link.startswith("https://")
    token = link.partition("#invite=")[2]
    # The certificate signs itself: a person compares the fingerprint once and goes on.
    with opened(browser, link, REFUSALS, ignore_https_errors=True) as page:
        expect(page.get_by_test_id("composer")).to_be_visible()
        assert token not in page.url
        expect(page.get_by_test_id("privacy-note")).to_be_visible()
        ask(page, "hello")
        expect(page.get_by_test_id("answered-by")).to_contain_text("one", timeout=ANSWER_MS)
        expect(page.get_by_test_id("message-assistant")).not_to_be_empty()
        page.reload()
        expect(page.get_by_test_id("composer")).to_be_visible()
        page.get_by_test_id("sign-out").click()
        page.get_by_test_id("sign-out-confirm").click()
        expect(page.get_by_test_id("sign-in")).to_be_visible()
        page.reload()
        expect(page.get_by_test_id("sign-in")).to_be_visible()
        page.get_by_test_id("invite-field").fill(link)
        page.get_by_test_id("sign-in-button").click()
        expect(page.get_by_test_id("sign-in-error")).to_contain_text("was used as often as it may be")
