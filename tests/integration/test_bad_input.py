"""Whatever is wrong gets one clear sentence, and a running answer goes on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from demo.local_pool import ROOT, local_pool
from protocol import PROTOCOL_VERSION
from tests.integration.conftest import READY_S, Served

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def tiny_pool(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model on one node."""
    folder = tmp_path_factory.mktemp("tiny-pool")
    with local_pool(folder, [str(tiny_folder)]) as pool:
        pool.add_node("one", "--cpu")
        pool.wait_ready(READY_S)
        yield Served(pool, tiny_folder.name)


@pytest.fixture
def running_answer(tiny_pool: Served) -> Iterator[None]:
    """A long answer that runs while the test does its worst, and must end as it does undisturbed."""
    undisturbed = tiny_pool.tokens("a long story", 200)
    got: list[list[int]] = []
    started = threading.Event()

    def read() -> None:
        tokens: list[int] = []
        for event in tiny_pool.events("a long story", max_tokens=200, return_token_ids=True):
            started.set()
            tokens += event["choices"][0].get("token_ids", ())
        got.append(tokens)

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(LIMIT_S)
    yield
    reader.join(LIMIT_S)
    assert got == [undisturbed]


def post(served: Served, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, str]]:
    address = f"{served.pool.url}/v1/chat/completions"
    answer = httpx.post(address, content=body, headers={"Content-Type": kind}, timeout=60)
    return answer.status_code, answer.json()["error"]


@pytest.mark.usefixtures("running_answer")
@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (
            b'{"model": "nope", "messages": [{"role": "user", "content": "hi"}]}',
            404,
            "model_not_found",
            "no model 'nope'",
        ),
        (b'{"model": ', 400, "invalid_json", "not JSON"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', 400, "missing_field", "model is missing"),
        (b'{"model": "tiny-llama"}', 400, "missing_field", "messages is missing"),
        (b'{"model": "tiny-llama", "messages": [{"role": "user"}]}', 400, "missing_field", "messages[0].content"),
        (b"[]", 400, "invalid_json", "JSON object"),
    ],
)
def test_a_bad_request_gets_its_sentence(tiny_pool: Served, body: bytes, status: int, code: str, words: str) -> None:
    got, error = post(tiny_pool, body)
    assert (got, error["code"]) == (status, code)
    assert words in error["message"]
    assert "Traceback" not in error["message"]


@pytest.mark.usefixtures("running_answer")
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_pool: Served) -> None:
    got, error = post(tiny_pool, json.dumps(tiny_pool.body("x" * 2000)).encode())
    assert (got, error["code"]) == (400, "context_length_exceeded")
    assert "reads at most 511" in error["message"]


@pytest.mark.usefixtures("running_answer")
def test_a_node_with_a_wrong_protocol_version_is_told_so(tiny_pool: Served) -> None:
    hello = {"type": "hello", "protocol_version": 99, "node_id": "0" * 32, "some_new_field": 1}
    with connect(tiny_pool.pool.url.replace("http", "ws") + "/node") as websocket:
        assert json.loads(websocket.recv(timeout=LIMIT_S))["type"] == "challenge"
        websocket.send(json.dumps(hello))
        refusal = json.loads(websocket.recv(timeout=LIMIT_S))
        with pytest.raises(ConnectionClosed):
            websocket.recv(timeout=LIMIT_S)
        assert websocket.close_code == 4406
    assert refusal["type"] == "refused"
    assert (
        f"speaks protocol version {PROTOCOL_VERSION - 1}, {PROTOCOL_VERSION}, the node speaks 99" in refusal["message"]
    )


@pytest.mark.usefixtures("running_answer")
def test_a_port_in_use_is_one_sentence(tiny_pool: Served, tmp_path: Path) -> None:
    port = tiny_pool.pool.url.rpartition(":")[2]
    ended = run_coordinator("serve", "--port", port, "--data-dir", str(tmp_path))
    assert ended.returncode == 2
    assert f"Cannot listen on 127.0.0.1 port {port}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def run_coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "coordinator", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S, check=False)


def test_a_truncated_weight_file_is_refused_at_start_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    os.truncate(broken / "model.safetensors", 20_000)
    ended = run_coordinator("serve", "--port", "0", "--data-dir", str(tmp_path), "--model", str(broken))
    assert ended.returncode == 2
    assert "model.safetensors is damaged or incomplete" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_rots_on_the_mirror_is_refused_by_the_node_and_named_on_the_pool_page(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rotten = tmp_path / "rotten"
    shutil.copytree(tiny_folder, rotten)
    with local_pool(tmp_path / "run", [str(rotten)]) as pool:
        with (rotten / "model.safetensors").open("r+b") as weights:
            weights.seek(-64, os.SEEK_END)
            weights.write(b"\xff" * 8)
        pool.add_node("one", "--cpu")
        pool.wait_until(
            lambda state: any(d["state"] == "failed" for n in state["nodes"] for d in n["devices"]), READY_S
        )
        reasons = [d["reason"] for n in pool.state()["nodes"] for d in n["devices"]]
        assert any("model.safetensors is corrupt" in reason for reason in reasons), reasons


def test_a_pool_without_a_model_starts_and_says_so(tmp_path: Path) -> None:
    with local_pool(tmp_path, []) as pool:
        got, error = post(Served(pool, "any"), b'{"model": "any", "messages": [{"role": "user", "content": "hi"}]}')
        assert got == 404
        assert "this pool has no model yet" in error["message"]
        assert any("This pool has no model yet" in line for line in pool.coordinator.lines)


def test_a_model_without_nodes_is_not_ready_and_says_what_it_waits_for(tiny_folder: Path, tmp_path: Path) -> None:
    with local_pool(tmp_path, [str(tiny_folder)]) as pool:
        served = Served(pool, tiny_folder.name)
        answer = httpx.post(f"{pool.url}/v1/chat/completions", json=served.body("hi"), timeout=60)
        assert answer.status_code == 503
        assert "No node is connected" in answer.json()["error"]["message"]
        assert answer.headers["Retry-After"]


def test_two_requests_and_a_client_that_leaves_do_not_disturb_each_other(tiny_pool: Served) -> None:
    alone = tiny_pool.tokens("first", 60)

    async def both() -> list[int]:
        address = f"{tiny_pool.pool.url}/v1/chat/completions"
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            whole = client.post(address, json=tiny_pool.body("first", max_tokens=60, return_token_ids=True))
            task = asyncio.create_task(whole)
            body = tiny_pool.body("second", max_tokens=400, stream=True)
            async with client.stream("POST", address, json=body) as leaving:
                await anext(leaving.aiter_lines())
            ids: list[int] = (await task).json()["choices"][0]["token_ids"]
            return ids

    assert asyncio.run(both()) == alone
