"""Who asks: ids, never secrets; and a timeout that is a number of seconds, or a clear refusal."""

from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from coordinator.accounts import Caller, Role
from coordinator.api.asker import TIMEOUT_HEADER, Asker, asker_of, deadline_of, tenant_of
from coordinator.api.errors import InvalidRequest
from tests.fakes.api_driver import CHAT, CLOSED_SITE, question, running_api, speaker
from tests.fakes.virtual_loop import on_virtual_time


def request(*timeouts: str, caller: Caller | None = None) -> Request:
    headers = [(TIMEOUT_HEADER.lower().encode(), value.encode("latin-1")) for value in timeouts]
    state = {"caller": caller} if caller else {}
    return Request({"type": "http", "headers": headers, "client": ("10.0.0.9", 1), "state": state})


def test_a_key_a_browser_and_an_address_are_tenants_of_their_own() -> None:
    assert tenant_of(Caller(Role.CHAT, key_id="k1"), "10.0.0.9") == "key k1"
    assert tenant_of(Caller(Role.CHAT, session_id="k1"), "10.0.0.9") == "session k1"
    assert tenant_of(Caller(None), "10.0.0.9") == "address 10.0.0.9"


def test_what_the_gate_found_and_the_header_says_is_the_asker() -> None:
    assert asker_of(request("2.5", caller=Caller(Role.CHAT, key_id="k1"))) == Asker("key k1", 2.5)
    assert asker_of(request()) == Asker("address 10.0.0.9", None)


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("0.25", 0.25), ("86400", 86400.0), ("007", 7.0)])
def test_a_timeout_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert deadline_of(request(text)) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "soon", "1e3", "nan", "inf", "86401", "1,5", " 5 5", "٣", "²", "9" * 400, "5\n"]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        deadline_of(request(text.encode().decode("latin-1")))
    assert (caught.value.status, caught.value.param) == (400, TIMEOUT_HEADER)
    assert "seconds" in str(caught.value)


def test_two_timeouts_are_none() -> None:
    with pytest.raises(InvalidRequest):
        deadline_of(request("1", "2"))


@on_virtual_time
async def test_a_request_with_a_bad_timeout_is_answered_so_and_costs_nothing() -> None:
    async with running_api(speaker()) as api:
        headers = {"content-type": "application/json", TIMEOUT_HEADER: "soon"}
        reply = await api.client.request("POST", CHAT, json.dumps(question()).encode(), headers)
        assert reply.error == (400, "invalid_value", TIMEOUT_HEADER)
        await api.still_works()


@on_virtual_time
async def test_an_order_carries_its_tenant_and_deadline_into_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        key, secret = api.accounts.make_key("ada", None)
        orders = []
        core = api.pool.hub.core
        core_request = core.request
        monkeypatch.setattr(core, "request", lambda order, now_s: orders.append(order) or core_request(order, now_s))
        headers = {"content-type": "application/json", "authorization": f"Bearer {secret}", TIMEOUT_HEADER: "30"}
        reply = await api.client.request("POST", CHAT, json.dumps(question()).encode(), headers)
        assert reply.status == 200
        [order] = orders
        assert (order.tenant, order.deadline_s) == (f"key {key.key_id}", 30.0)
        assert secret not in repr(order)
