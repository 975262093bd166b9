"""The pool as JSON: what each model waits for and what each node does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from coordinator.api.plan_view import PlanBoard
from coordinator.api.pool_view import model_views, pool_view
from coordinator.config import Site
from coordinator.scheduler.state import DeviceState
from protocol import messages as m
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CLOSED_SITE, NAME, OPEN_SITE, served_model
from tests.fakes.fake_node import FakeNode
from tests.fakes.hub_driver import HubDriver, order, running_hub, say
from tests.fakes.virtual_loop import on_virtual_time

MODELS = {NAME: served_model()}


def seen(pool: HubDriver, site: Site = OPEN_SITE) -> dict[str, Any]:
    """With a plan of this very moment."""
    board = PlanBoard(pool.hub, pool.world.env("coordinator").clock)
    return pool_view(pool.hub, MODELS, site, board.look())


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
        await pool.until(lambda: seen(pool)["nodes"][0]["state"] == "loading")
        [view] = seen(pool)["nodes"]
        assert view["name"] == "node 1"
        [device] = view["devices"]
        assert (device["model"], device["layers"], device["num_layers"]) == (NAME, "0-7", 8)
        assert (device["done_bytes"], device["total_bytes"]) == (50, 100)
        assert view["id"] == node.node_id[:8]
        assert view["is_draining"] is False
        assert json.loads(json.dumps(seen(pool)))["name"] == "test pool"


@on_virtual_time
async def test_a_device_that_failed_shows_why() -> None:
    async with running_hub() as pool:
        connection = await pool.join(FakeNode(1))
        await pool.until_ready()
        await say(connection, m.DeviceFailed(facts.CPU, facts.DIGEST, 1, "out_of_memory", "No memory was left."))
        await pool.until(lambda: seen(pool)["nodes"][0]["state"] == "failed")
        [device] = seen(pool)["nodes"][0]["devices"]
        assert (device["reason"], device["layers"]) == ("No memory was left.", "")


@on_virtual_time
async def test_a_node_with_one_serving_device_serves() -> None:
    gpu = facts.spec(0, device_id=facts.DeviceId("cuda:0"))
    async with running_hub(FakeNode(1, gpu, facts.spec(8))) as pool:
        [view] = seen(pool)["nodes"]
        assert view["state"] == "serving"
        assert {device["state"] for device in view["devices"]} == {"serving", "idle"}


@on_virtual_time
async def test_only_an_open_pool_tells_everybody_how_to_join() -> None:
    async with running_hub() as pool:
        assert seen(pool)["join_link"] == OPEN_SITE.join_link()
        assert seen(pool, CLOSED_SITE)["join_link"] is None


@on_virtual_time
async def test_it_says_how_many_requests_wait() -> None:
    async with running_hub(FakeNode(1, facts.spec(8), num_kv_tokens=20)) as pool:
        tasks = [asyncio.ensure_future(anext(pool.hub.generate(order(number, num_tokens=12)))) for number in (1, 2, 3)]
        await pool.until(lambda: all(task.done() for task in tasks))
        assert seen(pool)["num_waiting"] == 2


@on_virtual_time
async def test_it_says_what_is_expected_of_a_model_and_where_each_device_is_in_the_plan() -> None:
    async with running_hub() as pool:
        assert seen(pool)["models"][0]["plan"] is None
        await pool.join(FakeNode(1, facts.spec(4)))
        await pool.join(FakeNode(2, facts.spec(4)))
        await pool.until_ready()
        view = seen(pool)
        [model] = view["models"]
        assert set(model["plan"]) == {"num_lanes", "tpot_s", "ttft_s", "tokens_per_s", "num_sessions"}
        assert model["plan"]["num_lanes"] == 1
        assert model["plan"]["tpot_s"] > 0
        assert [node["devices"][0]["lane"] for node in view["nodes"]] == [1, 1]


@on_virtual_time
async def test_a_device_that_stands_by_says_why() -> None:
    async with running_hub() as pool:
        await pool.join(FakeNode(1, facts.spec(4)))
        await pool.until(lambda: pool.hub.core.scheduler.state.usable(DeviceState.FREE))
        [device] = seen(pool)["nodes"][0]["devices"]
        assert (device["lane"], device["layers"]) == (None, "")
        assert "room for 4 of 8 layers" in device["reason"]
