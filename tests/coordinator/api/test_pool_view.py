"""The pool as JSON: what each model waits for and what each node does."""

from __future__ import annotations

import json

from coordinator.api.pool_view import model_views, pool_view
from protocol import messages as m
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import NAME, served_model
from tests.fakes.fake_node import FakeNode
from tests.fakes.hub_driver import HubDriver, running_hub, say
from tests.fakes.virtual_loop import on_virtual_time

MODELS = {NAME: served_model()}


def state_of(pool: HubDriver) -> tuple[str, str]:
    [view] = model_views(pool.hub, MODELS)
    return view["state"], view["message"]


@on_virtual_time
async def test_a_model_goes_from_incomplete_over_loading_to_ready() -> None:
    async with running_hub() as pool:
        assert state_of(pool) == ("incomplete", "No node is connected; model-2c needs 8 layers held.")
        slow = FakeNode(1, facts.spec(4))
        slow.loads = False
        await pool.join(slow)
        await pool.until(lambda: "4 of 8" in state_of(pool)[1])
        assert state_of(pool)[0] == "incomplete"
        await pool.join(FakeNode(2, facts.spec(4)))
        await pool.until(lambda: pool.hub.core.scheduler.state.holders(facts.DIGEST))
        assert state_of(pool)[0] == "loading"
    async with running_hub(FakeNode(1)) as pool:
        assert state_of(pool) == ("ready", "")


@on_virtual_time
async def test_a_node_shows_name_devices_and_progress() -> None:
    node = FakeNode(1)
    node.loads = False
    async with running_hub() as pool:
        await pool.join(node)
        await pool.until(lambda: pool_view(pool.hub, MODELS)["nodes"][0]["state"] == "loading")
        [view] = pool_view(pool.hub, MODELS)["nodes"]
        assert view["name"] == "node 1"
        [device] = view["devices"]
        assert (device["model"], device["layers"], device["num_layers"]) == (NAME, "0-7", 8)
        assert (device["done_bytes"], device["total_bytes"]) == (50, 100)
        assert json.loads(json.dumps(pool_view(pool.hub, MODELS)))["name"] == "test pool"


@on_virtual_time
async def test_a_device_that_failed_shows_why() -> None:
    async with running_hub() as pool:
        connection = await pool.join(FakeNode(1))
        await pool.until_ready()
        await say(connection, m.DeviceFailed(facts.CPU, facts.DIGEST, 1, "out_of_memory", "No memory was left."))
        await pool.until(lambda: pool_view(pool.hub, MODELS)["nodes"][0]["state"] == "failed")
        [device] = pool_view(pool.hub, MODELS)["nodes"][0]["devices"]
        assert (device["reason"], device["layers"]) == ("No memory was left.", "")


@on_virtual_time
async def test_a_node_with_one_serving_device_serves() -> None:
    gpu = facts.spec(0, device_id=facts.DeviceId("cuda:0"))
    async with running_hub(FakeNode(1, gpu, facts.spec(8))) as pool:
        [view] = pool_view(pool.hub, MODELS)["nodes"]
        assert view["state"] == "serving"
        assert {device["state"] for device in view["devices"]} == {"serving", "idle"}
