"""The plan with names, and how long it is kept."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from coordinator.api.plan_view import KEPT_S, PlanBoard, PlanView, forecast_view
from coordinator.scheduler.explain import Part
from coordinator.scheduler.plan import Forecast
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CLOSED_SITE, running_api, speaker
from tests.fakes.fake_node import FakeNode
from tests.fakes.hub_driver import HubDriver, running_hub
from tests.fakes.virtual_loop import on_virtual_time


def board(pool: HubDriver) -> PlanBoard:
    return PlanBoard(pool.hub, pool.world.env("coordinator").clock)


@on_virtual_time
async def test_nodes_and_devices_have_their_names_and_the_plan_is_read_back_from_json() -> None:
    async with running_hub(FakeNode(1, facts.spec(8)), FakeNode(2, facts.spec(2))) as pool:
        view = board(pool).look().view
        assert msgspec.json.decode(msgspec.json.encode(view), type=PlanView) == view
        assert (view.pool, view.num_devices) == ("test pool", 2)
        [model] = view.models
        [lane] = model.lanes
        [[holder]] = [stage.holders for stage in lane.stages]
        assert (holder.node, holder.device, holder.part, holder.layers) == ("node 1", "a CPU", Part.SERVING, "0-7")
        assert holder.why
        assert [d.node for d in (*view.idle, *model.others)] == ["node 2"]
        assert model.newcomer.like.startswith("node ")


@on_virtual_time
async def test_it_is_worked_out_anew_only_after_a_while() -> None:
    async with running_hub(FakeNode(1, facts.spec(8))) as pool:
        plans, clock = board(pool), pool.world.env("coordinator").clock
        first = plans.look()
        await clock.sleep(KEPT_S / 2)
        assert plans.look() is first
        await clock.sleep(KEPT_S)
        assert plans.look() is not first


class SlowClock:
    """Every look at it takes ten seconds."""

    now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 10.0
        return self.now_s

    def wall(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float) -> None: ...


@on_virtual_time
async def test_a_plan_that_took_long_is_kept_long() -> None:
    async with running_hub(FakeNode(1, facts.spec(8))) as pool:
        plans = PlanBoard(pool.hub, SlowClock())
        first = plans.look()
        assert all(plans.look() is first for _ in range(15))


def test_what_never_comes_has_no_figures() -> None:
    assert forecast_view(Forecast(math.inf, math.inf, 0.0, 0)) is None
    shown = forecast_view(Forecast(0.1, 1.0, 5.0, 3))
    assert shown is not None
    assert shown.num_sessions == 3


@on_virtual_time
async def test_only_an_operator_gets_the_plan() -> None:
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        guest = api.browser()
        await guest.sign_in(api.invitation())
        assert (await guest.get("/api/operator/plan")).status == 403
        assert (await api.browser().get("/api/operator/plan")).status == 403
        reply = await (await api.operator()).get("/api/operator/plan")
        assert reply.status == 200
        [model] = json.loads(reply.body)["models"]
        assert model["lanes"][0]["stages"][0]["holders"][0]["node"] == "node 1"


@pytest.mark.parametrize("num_nodes", [0, 1])
@on_virtual_time
async def test_a_pool_in_which_nothing_serves_has_a_plan_too(num_nodes: int) -> None:
    async with running_hub() as pool:
        for number in range(1, num_nodes + 1):
            await pool.join(FakeNode(number, facts.spec(4)))
        await pool.world.env("coordinator").clock.sleep(5.0)
        view = board(pool).look().view
        assert len(view.idle) == num_nodes
        assert all(model.forecast is None for model in view.models)
