"""What an operator can change, what comes of it, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.models.catalog import Catalog
from protocol.join_link import parse_join_link
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import (
    CHAT,
    CLOSED_SITE,
    NAME,
    ApiDriver,
    Browser,
    fake_model,
    question,
    running_api,
    speaker,
)
from tests.fakes.fake_node import FakeNode
from tests.fakes.virtual_loop import on_virtual_time

OPERATOR = "/api/operator"
NODE = f"{OPERATOR}/nodes/{facts.node_id(1)}"


def enrolled(api: ApiDriver, node: FakeNode) -> None:
    """As the gate does when the node comes."""
    api.accounts.admit_node(node.node_id, node.hello.public_key, node.hello.name, None, is_open=True)


def audited(api: ApiDriver) -> list[str]:
    """What was done, the first first; without the operators' own coming."""
    return [line.what for line in reversed(api.accounts.audit_trail()) if line.what != "signed in"]


async def seen(operator: Browser) -> Any:
    return (await operator.get(f"{OPERATOR}/overview")).json()


# ---------------------------------------------------------------- nodes


@on_virtual_time
async def test_a_node_is_drained_and_used_again() -> None:
    node = speaker()
    async with running_api(node) as api:
        operator = await api.operator()
        reply = await operator.post(f"{NODE}/drain", {"on": True})
        assert reply.json() == {"node_id": node.node_id, "is_draining": True}
        assert (await seen(operator))["nodes"][0]["is_draining"] is True
        assert (await api.client.get("/pool")).json()["nodes"][0]["is_draining"] is True
        await operator.post(f"{NODE}/drain", {"on": False})
        assert (await seen(operator))["nodes"][0]["is_draining"] is False
        await api.pool.until_ready()
        await api.still_works()
        short = node.node_id[:8]
        assert audited(api) == [f"drains machine {short}", f"uses again machine {short}"]


@on_virtual_time
async def test_a_removed_node_is_dropped_and_blocked_until_it_is_unblocked() -> None:
    node = speaker()
    async with running_api(node) as api:
        enrolled(api, node)
        operator = await api.operator()
        assert (await operator.post(f"{NODE}/remove")).json() == {"node_id": node.node_id, "is_blocked": True}
        assert node.node_id not in api.pool.hub.core.nodes
        [gone] = (await seen(operator))["nodes"]
        assert (gone["is_connected"], gone["is_blocked"], gone["state"]) == (False, True, "blocked")
        assert (await operator.post(f"{NODE}/unblock")).json()["is_blocked"] is False
        assert (await seen(operator))["nodes"][0]["state"] == "offline"
        short = node.node_id[:8]
        assert audited(api) == [f"removed machine {short}", f"unblocked machine {short}"]


@pytest.mark.parametrize("node_id", ["ff" * 16, "x", "..", "%00", "' or 1=1", "x" * 1000])
@pytest.mark.parametrize("action", ["drain", "remove", "unblock"])
async def test_an_unknown_machine_is_404_and_nothing_is_written(node_id: str, action: str) -> None:
    async with running_api() as api:
        operator = await api.operator()
        reply = await operator.post(f"{OPERATOR}/nodes/{node_id}/{action}", {"on": True} if action == "drain" else {})
        assert reply.error == (404, "not_found", None)
        assert not audited(api)


# ---------------------------------------------------------------- models


class FakeCatalog:
    """Knows three models; what it is asked for is remembered."""

    def __init__(self) -> None:
        self.known = {"kept", "owner/name"}

    def names(self) -> list[str]:
        return sorted(self.known)

    def add(self, spec: str, name: str | None, progress: Any) -> Any:
        self.known.add(name or spec)
        return fake_model({}, name or spec, "ab" * 32, num_layers=4)

    def open(self, name: str, progress: Any) -> Any:
        return fake_model({}, name, "cd" * 32, num_layers=2)

    def remove(self, name: str) -> None:
        self.known.discard(name)


def with_catalog(catalog: FakeCatalog) -> Any:
    return lambda children: cast(Catalog, catalog)


@on_virtual_time
async def test_a_model_is_added_served_unloaded_loaded_again_and_removed() -> None:
    catalog = FakeCatalog()
    async with running_api(make_catalog=with_catalog(catalog)) as api:
        operator = await api.operator()
        added = await operator.post(f"{OPERATOR}/models", {"spec": "/models/new", "name": "owner/new"})
        assert (added.status, added.json()["state"], added.json()["spec"]) == (202, "running", "/models/new")
        await api.pool.until(lambda: "owner/new" in api.services.desk.models)
        assert (await seen(operator))["jobs"][0]["state"] == "done"
        assert (await api.client.get("/v1/models/owner/new")).status == 200
        address = f"{OPERATOR}/models/owner/new"
        assert (await operator.post(f"{address}/unload")).json() == {"id": "owner/new", "is_loaded": False}
        assert (await api.client.get("/v1/models/owner/new")).status == 404
        assert (await operator.post(f"{address}/load")).status == 202
        await api.pool.until(lambda: "owner/new" in api.services.desk.models)
        assert (await operator.post(f"{address}/load")).error == (409, "model_loaded", None)
        assert (await operator.delete(address)).json() == {"id": "owner/new", "is_removed": True}
        assert "owner/new" not in {model["id"] for model in (await seen(operator))["models"]}
        assert audited(api) == [
            "adds model '/models/new'",
            "unloaded model 'owner/new'",
            "loads model 'owner/new'",
            "removed model 'owner/new'",
        ]


@on_virtual_time
async def test_who_chats_with_a_model_that_is_unloaded_is_told_so() -> None:
    async with running_api(speaker(), make_catalog=with_catalog(FakeCatalog())) as api:
        operator = await api.operator()
        await api.still_works()
        assert (await operator.post(f"{OPERATOR}/models/{NAME}/unload")).status == 200
        assert (await api.client.post(CHAT, question())).error == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_field", "spec"),
        ({"spec": ""}, "invalid_value", "spec"),
        ({"spec": 5}, "invalid_value", "spec"),
        ({"spec": "a\0b"}, "invalid_value", "spec"),
        ({"spec": "a\nb"}, "invalid_value", "spec"),
        ({"spec": "x" * 1001}, "invalid_value", "spec"),
        ({"spec": "a", "name": ""}, "invalid_value", "name"),
        ({"spec": "a", "name": "x" * 65}, "invalid_value", "name"),
        ({"spec": "a", "trust_remote_code": True}, "unknown_field", "trust_remote_code"),
        ([], "invalid_json", None),
    ],
)
async def test_a_model_that_cannot_be_meant_is_refused_by_its_field(body: Any, code: str, param: str | None) -> None:
    async with running_api() as api:
        operator = await api.operator()
        assert (await operator.post(f"{OPERATOR}/models", body)).error == (400, code, param)
        assert not api.services.desk.jobs()
        assert not audited(api)


@pytest.mark.parametrize("name", ["nothing", "../..", "a/b/c", "%00", "x" * 1000, "tiny/unload"])
async def test_an_unknown_model_is_404(name: str) -> None:
    async with running_api(make_catalog=with_catalog(FakeCatalog())) as api:
        operator = await api.operator()
        assert (await operator.post(f"{OPERATOR}/models/{name}/unload")).error == (404, "model_not_found", "model")
        assert (await operator.delete(f"{OPERATOR}/models/{name}")).error == (404, "model_not_found", "model")
        assert not audited(api)


# ---------------------------------------------------------------- invitations and keys


@pytest.mark.parametrize(("chat", "nodes"), [(True, True), (True, False), (False, True)])
async def test_an_invitation_comes_in_the_forms_that_it_is_good_for(chat: bool, nodes: bool) -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        terms = {"label": "lab", "allows_chat": chat, "allows_nodes": nodes, "max_uses": 3, "expires_in_s": 3600}
        made = (await operator.post(f"{OPERATOR}/invitations", terms)).json()
        assert made["invitation"]["label"] == "lab"
        assert (made["browser_link"] != "") is chat
        assert (made["join_link"] != "") is nodes
        if nodes:
            link = parse_join_link(made["join_link"])
            assert (link.url, link.pin) == (CLOSED_SITE.base_url, CLOSED_SITE.pin)
            api.accounts.admit_node(facts.node_id(7), "ab" * 32, "new", link.invite, is_open=False)
        if chat:
            token = parse_join_link(made["browser_link"]).invite
            assert (await api.browser().sign_in(token)).status == 200
            assert token not in str(await seen(operator)), "it is shown only once"


async def test_a_revoked_invitation_lets_nobody_in() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator, token = await api.operator(), api.invitation()
        [invitation] = (await seen(operator))["invitations"]
        address = f"{OPERATOR}/invitations/{invitation['invitation_id']}"
        assert (await operator.delete(address)).json()["is_revoked"] is True
        assert (await api.browser().sign_in(token)).error == (403, "invitation_revoked", None)
        assert audited(api) == [f"revoked invitation {invitation['invitation_id']}"]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"label": ""}, 400, "bad_label", None),
        ({"label": "x" * 65}, 400, "bad_label", None),
        ({"label": "a\nb"}, 400, "bad_label", None),
        ({"label": "x" * 1001}, 400, "invalid_value", "label"),
        ({"label": None}, 400, "invalid_value", "label"),
        ({"allows_chat": 1}, 400, "invalid_value", "allows_chat"),
        ({"allows_chat": False}, 400, "allows_nothing", None),
        ({"max_uses": 0}, 400, "bad_max_uses", None),
        ({"max_uses": -1}, 400, "bad_max_uses", None),
        ({"max_uses": 1.5}, 400, "invalid_value", "max_uses"),
        ({"max_uses": 10**60}, 400, "bad_max_uses", None),
        ({"expires_in_s": 0}, 400, "bad_expiry", None),
        ({"expires_in_s": -5}, 400, "bad_expiry", None),
        ({"expires_in_s": 1e300}, 400, "bad_expiry", None),
        ({"expires_in_s": "60"}, 400, "invalid_value", "expires_in_s"),
        ({"role": "operator"}, 400, "unknown_field", "role"),
    ],
)
async def test_an_invitation_that_cannot_be_is_refused(
    change: dict[str, Any], status: int, code: str, param: Any
) -> None:
    terms = {"label": "a", "allows_chat": True, "allows_nodes": False, "max_uses": None, "expires_in_s": None} | change
    async with running_api() as api:
        operator = await api.operator()
        assert (await operator.post(f"{OPERATOR}/invitations", terms)).error == (status, code, param)
        assert not api.accounts.invitations()
        assert not audited(api)


async def test_a_number_beyond_all_others_is_no_expiry() -> None:
    """1e999 is good JSON; Python reads it as infinity."""
    async with running_api() as api:
        operator = await api.operator()
        body = b'{"label": "a", "expires_in_s": 1e999}'
        reply = await operator._send("POST", f"{OPERATOR}/keys", body, {"content-type": "application/json"})
        assert reply.error == (400, "invalid_value", "expires_in_s")


async def test_a_key_is_shown_once_works_and_is_revoked() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        operator = await api.operator()
        made = (await operator.post(f"{OPERATOR}/keys", {"label": "program", "expires_in_s": None})).json()
        secret, key_id = made["secret"], made["key"]["key_id"]
        assert secret.startswith(f"sk-{key_id}-")
        assert (await api.client.get("/v1/models", {"authorization": f"Bearer {secret}"})).status == 200
        overview = await seen(operator)
        assert [key["label"] for key in overview["keys"]] == ["program"]
        assert secret.rpartition("-")[2] not in str(overview)
        assert (await operator.delete(f"{OPERATOR}/keys/{key_id}")).json() == {"key_id": key_id, "is_revoked": True}
        assert (await api.client.get("/v1/models", {"authorization": f"Bearer {secret}"})).status == 401
        assert audited(api) == [f"made key {key_id} ('program')", f"revoked key {key_id}"]


@pytest.mark.parametrize("path", ["invitations/unknown", "keys/unknown", "keys/%00", "invitations/' or 1=1"])
async def test_what_is_not_there_cannot_be_revoked(path: str) -> None:
    async with running_api() as api:
        operator = await api.operator()
        assert (await operator.delete(f"{OPERATOR}/{path}")).error == (404, "not_found", None)
        assert not audited(api)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("nodes/x/drain", {"on": 1}),
        ("nodes/x/drain", {}),
        ("nodes/x/remove", {"force": True}),
        ("nodes/x/unblock", {"x": 1}),
        ("models/tiny/load", {"x": 1}),
        ("models/tiny/unload", {"x": 1}),
        ("keys", {"label": "a"} | {"scopes": ["admin"]}),
        ("keys", {"expires_in_s": None}),
    ],
)
async def test_a_body_that_says_too_much_or_too_little_is_refused(path: str, body: dict[str, Any]) -> None:
    async with running_api() as api:
        operator = await api.operator()
        reply = await operator.post(f"{OPERATOR}/{path}", body)
        assert reply.status == 400
        assert reply.json()["error"]["param"]
        assert NAME in api.services.desk.models
        assert not audited(api)


async def test_every_answer_is_kept_out_of_caches() -> None:
    async with running_api() as api:
        operator = await api.operator()
        for reply in (
            await operator.get(f"{OPERATOR}/overview"),
            await operator.post(f"{OPERATOR}/keys", {"label": "a", "expires_in_s": None}),
            await operator.post(f"{OPERATOR}/keys", {}),
            await api.client.get(f"{OPERATOR}/overview"),
        ):
            assert reply.headers["cache-control"] == "no-store"


async def test_who_did_it_is_in_the_trail_and_no_secret_is() -> None:
    async with running_api(site=CLOSED_SITE) as api:
        one, other = await api.operator(), await api.operator()
        made = [
            (await browser.post(f"{OPERATOR}/keys", {"label": "a", "expires_in_s": None})).json()["secret"]
            for browser in (one, other)
        ]
        lines = [line for line in api.accounts.audit_trail() if "key" in line.what]
        assert len({line.who for line in lines}) == 2
        text = str(SimpleNamespace(lines=api.accounts.audit_trail()))
        assert not any(secret.rpartition("-")[2] in text for secret in made)
        assert not any(cookie in text for browser in (one, other) for cookie in browser.cookies.values())
