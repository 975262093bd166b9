"""The routes through the whole application: shapes, bad requests, weights."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.bodies import MAX_BODY_BYTES
from tests.coordinator.api.test_schemas import BAD_FIELDS
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CHAT, CLOSED_SITE, MANIFEST, NAME, TEXT, question, running_api, speaker
from tests.fakes.asgi_client import JSON
from tests.fakes.fake_node import FakeNode
from tests.fakes.virtual_loop import on_virtual_time

# ---------------------------------------------------------------- what can be read


@on_virtual_time
async def test_health_says_whether_each_model_can_answer() -> None:
    async with running_api(speaker()) as api:
        assert (await api.client.get("/healthz")).json() == {"status": "ok", "models": {NAME: True}}
    async with running_api() as api:
        assert (await api.client.get("/healthz")).json() == {"status": "ok", "models": {NAME: False}}


@on_virtual_time
async def test_models_are_listed_as_openai_does() -> None:
    async with running_api(speaker()) as api:
        listing = (await api.client.get("/v1/models")).json()
        assert listing["object"] == "list"
        [model] = listing["data"]
        assert {key: model[key] for key in ("id", "object", "created", "owned_by")} == {
            "id": NAME,
            "object": "model",
            "created": 1_800_000_000,
            "owned_by": "decentllm",
        }
        assert model["decentllm"]["state"] == "ready"
        assert (await api.client.get(f"/v1/models/{NAME}")).json() == model
        assert (await api.client.get("/v1/models/owner/other")).error == (404, "model_not_found", "model")


@on_virtual_time
async def test_the_pool_shows_models_and_nodes() -> None:
    async with running_api(speaker(1, max_layers=4), speaker(2, max_layers=4)) as api:
        pool = (await api.client.get("/pool")).json()
        assert set(pool) == {"name", "models", "nodes", "num_waiting", "join_link"}
        assert pool["name"] == "test pool"
        assert [(node["name"], node["state"]) for node in pool["nodes"]] == [
            ("node 1", "serving"),
            ("node 2", "serving"),
        ]
        assert facts.node_id(1) not in json.dumps(pool), "for the public its beginning is enough"


# ---------------------------------------------------------------- bad requests


@pytest.mark.parametrize(("fields", "code", "param"), BAD_FIELDS[::4])
@on_virtual_time
async def test_a_bad_field_is_refused_and_the_next_request_works(fields: dict[str, Any], code: str, param: str) -> None:
    data = {name: value for name, value in question(**fields).items() if value is not ...}
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, data)
        assert reply.error == (400, code, param)
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
        await api.still_works()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_json"),
        (b"", JSON, 400, "invalid_json"),
        (b"\xff", JSON, 400, "invalid_utf8"),
        (b'{"\\ud800":1,"\\ud800":2}', JSON, 400, "duplicate_key"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"\x1f\x8b", {**JSON, "content-encoding": "gzip"}, 415, "unsupported_encoding"),
        (b"x" * (MAX_BODY_BYTES + 1), JSON, 413, "body_too_large"),
    ],
)
@on_virtual_time
async def test_a_bad_body_is_refused_and_the_next_request_works(
    body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    async with running_api(speaker()) as api:
        assert (await api.client.request("POST", CHAT, body, headers)).error == (
            status,
            code,
            None if code != "duplicate_key" else "\\ud800",
        )
        await api.still_works()


@on_virtual_time
async def test_a_media_type_may_have_parameters() -> None:
    async with running_api(speaker()) as api:
        headers = {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}
        assert (await api.client.request("POST", CHAT, json.dumps(question()).encode(), headers)).status == 200


@on_virtual_time
async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    pieces = [b"x" * 2**20] * 100
    async with running_api(speaker()) as api, api.client.exchange("POST", CHAT, pieces, JSON) as exchange:
        reply = await exchange.finished()
        assert reply.error == (413, "body_too_large", None)
        assert exchange._num_read == 5


@on_virtual_time
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_no_trace() -> None:
    async with running_api(speaker()) as api:
        async with api.client.exchange("POST", CHAT, [b"{", b"}"], JSON, gone_after=1) as exchange:
            await exchange.finished()
        await api.still_works()


@pytest.mark.parametrize("model", ["other", "../../etc/passwd", "a/b@main", "tiny\x00", " tiny"])
@on_virtual_time
async def test_an_unknown_model_is_404_with_the_known_ones(model: str) -> None:
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, question(model=model))
        assert reply.error == (404, "model_not_found", "model")
        assert f"available: {NAME}" in reply.json()["error"]["message"]
        await api.still_works()


@on_virtual_time
async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    async with running_api(speaker(), context_length=100) as api:
        reply = await api.client.post(CHAT, question(messages=[{"role": "user", "content": "x" * 100}]))
        assert reply.error == (400, "context_length_exceeded", "messages")
        assert "107 tokens" in reply.json()["error"]["message"]
        assert "99" in reply.json()["error"]["message"]
        await api.still_works()


@on_virtual_time
async def test_a_prompt_the_template_refuses_is_the_writers_fault() -> None:
    async with running_api(speaker()) as api:
        reply = await api.client.post(CHAT, question(messages=[{"role": "user", "content": "\0"}]))
        assert reply.error == (400, "invalid_value", "messages")
        await api.still_works()


@pytest.mark.parametrize("stream", [True, False])
@on_virtual_time
async def test_a_pool_without_nodes_says_so_and_when_to_come_back(stream: bool) -> None:
    """Also for a stream: the status is not sent before the answer has a chain."""
    async with running_api() as api:
        reply = await api.client.post(CHAT, question(stream=stream))
        assert reply.error == (503, "model_not_ready", None)
        assert "No node is connected" in reply.json()["error"]["message"]
        assert reply.headers["retry-after"] == "5"
        assert reply.headers["content-type"] == "application/json"


@on_virtual_time
async def test_a_request_larger_than_the_pools_memory_is_refused_for_good() -> None:
    node = FakeNode(1, facts.spec(8), num_kv_tokens=5)
    async with running_api(node) as api:
        reply = await api.client.post(CHAT, question())
        assert reply.error == (400, "kv_room_exceeded", None)
        assert "retry-after" not in reply.headers


@on_virtual_time
async def test_running_answers_go_on_beside_bad_requests() -> None:
    async with running_api(speaker()) as api:
        good = [asyncio.ensure_future(api.client.post(CHAT, question())) for _ in range(5)]
        bad = [asyncio.ensure_future(api.client.post(CHAT, question(temperature="hot"))) for _ in range(5)]
        assert [reply.status for reply in await asyncio.gather(*good, *bad)] == [200] * 5 + [400] * 5
        assert all(task.result().json()["choices"][0]["message"]["content"] == TEXT for task in good)


# ---------------------------------------------------------------- weights: real files, so real time

DATA = bytes(range(256)) * 40
WEIGHTS = f"/weights/{facts.DIGEST}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "model.safetensors").write_bytes(DATA)
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return {"model.safetensors": tmp_path / "model.safetensors", "gone.safetensors": tmp_path / "gone"}


async def test_a_weight_file_comes_whole_or_in_part(files: dict[str, Path]) -> None:
    address = f"{WEIGHTS}/files/model.safetensors"
    async with running_api(files=files) as api:
        whole = await api.client.get(address)
        assert (whole.status, whole.body) == (200, DATA)
        assert whole.headers["content-type"] == "application/octet-stream"
        part = await api.client.get(address, {"range": "bytes=100-299"})
        assert (part.status, part.body) == (206, DATA[100:300])
        assert part.headers["content-range"] == f"bytes 100-299/{len(DATA)}"
        assert part.headers["content-length"] == "200"
        last = await api.client.get(address, {"range": f"bytes={len(DATA) - 1}-{len(DATA) - 1}"})
        assert (last.status, last.body) == (206, DATA[-1:])


async def test_a_range_outside_the_file_is_416(files: dict[str, Path]) -> None:
    async with running_api(files=files) as api:
        reply = await api.client.get(f"{WEIGHTS}/files/model.safetensors", {"range": f"bytes={len(DATA)}-"})
        assert reply.status == 416
        assert reply.headers["content-range"].endswith(f"*/{len(DATA)}")


@pytest.mark.parametrize("header", ["bytes=5-1", "bytes=x-y", "bytes=", "lines=0-1", "bytes=" + "0-0," * 5000])
async def test_a_senseless_range_is_refused_or_ignored(files: dict[str, Path], header: str) -> None:
    async with running_api(files=files) as api:
        reply = await api.client.get(f"{WEIGHTS}/files/model.safetensors", {"range": header})
        assert reply.status in (200, 206, 400, 416)
        assert len(reply.body) <= len(DATA)


async def test_the_manifest_has_its_own_address(files: dict[str, Path]) -> None:
    async with running_api(files=files) as api:
        reply = await api.client.get(f"{WEIGHTS}/manifest")
        assert (reply.status, reply.body) == (200, MANIFEST)


@pytest.mark.parametrize("digest", ["ff" * 32, "x", "..", "%00"])
async def test_an_unknown_manifest_is_404(files: dict[str, Path], digest: str) -> None:
    async with running_api(files=files) as api:
        for path in (f"/weights/{digest}/manifest", f"/weights/{digest}/files/model.safetensors"):
            assert (await api.client.get(path)).error == (404, "manifest_not_found", "manifest_hash")


@pytest.mark.parametrize("name", ["other", "secret.txt", "gone.safetensors", "..", "%2e%2e"])
async def test_only_files_of_the_manifest_exist(files: dict[str, Path], name: str) -> None:
    async with running_api(files=files) as api:
        assert (await api.client.get(f"{WEIGHTS}/files/{name}")).error == (404, "file_not_found", "name")


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/files/../../secret.txt", "/files//etc/passwd", "/files/a/../secret.txt"]
)
async def test_no_path_leads_out_of_the_model(files: dict[str, Path], path: str) -> None:
    async with running_api(files=files) as api:
        assert (await api.client.get(WEIGHTS + path)).error == (404, "not_found", None)


@on_virtual_time
async def test_a_closed_pool_tells_strangers_only_that_it_is_alive() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        answer = await api.client.get("/healthz")
        assert answer.json() == {"status": "ok"}
