"""The pool as the operator's page shows it."""

from __future__ import annotations

import json
from collections import Counter

from coordinator.api.model_desk import KnownModel
from coordinator.api.operator_view import NUM_AUDIT_LINES, models_view, nodes_view, overview, read_records
from coordinator.api.plan_view import PlanBoard
from tests.fakes import pool_facts as facts
from tests.fakes.api_driver import CLOSED_SITE, NAME, ApiDriver, running_api, speaker
from tests.fakes.virtual_loop import on_virtual_time


def came(api: ApiDriver, number: int, name: str) -> None:
    api.accounts.admit_node(facts.node_id(number), "ab" * 32, name, None, is_open=True)


@on_virtual_time
async def test_connected_nodes_come_first_and_those_that_are_gone_stay_in_view() -> None:
    node = speaker()
    async with running_api(node) as api:
        came(api, 1, "node 1")
        came(api, 9, "gone")
        await api.services.env.clock.sleep(100)
        here, gone = nodes_view(api.services, api.accounts.nodes())
        assert (here["name"], here["state"], here["is_connected"]) == ("node 1", "serving", True)
        assert here["node_id"] == node.node_id
        assert here["last_seen_s"] - here["first_seen_s"] >= 100
        assert (gone["name"], gone["state"], gone["is_connected"], gone["devices"]) == ("gone", "offline", False, [])
        assert gone["last_seen_s"] == gone["first_seen_s"]
        assert set(here) == set(gone)
        assert set(here) == {
            "node_id", "name", "state", "devices", "first_seen_s", "last_seen_s", "is_connected", "is_draining",
            "is_blocked", "num_tokens", "num_prompt_tokens", "num_sessions", "tokens_per_s",
            "troubles",
        }  # fmt: skip


@on_virtual_time
async def test_a_dead_node_is_gone_from_the_view_within_five_seconds() -> None:
    node = speaker()
    async with running_api(node) as api:
        node.silent = True
        await api.services.env.clock.sleep(5)
        assert not nodes_view(api.services, [])


@on_virtual_time
async def test_a_node_that_answers_shows_its_speed() -> None:
    async with running_api(speaker(text="word " * 100)) as api:
        await api.client.post("/v1/chat/completions", {"model": NAME, "messages": [{"role": "user", "content": "Hi"}]})
        await api.services.env.clock.sleep(2)
        [view] = nodes_view(api.services, [])
        assert view["tokens_per_s"] == api.pool.hub.core.nodes[facts.node_id(1)].tokens_per_s
        assert view["num_sessions"] == 0


@on_virtual_time
async def test_what_late_answers_were_about_is_counted_for_the_pool_and_for_the_node_also_when_it_is_gone() -> None:
    node = speaker()
    async with running_api(node) as api:
        came(api, 9, "gone")
        lateness = api.pool.hub.core.lateness
        lateness.counts.update(hangs=2, wait=7)
        lateness.troubles[facts.node_id(9)] = Counter(hangs=2)
        here, gone = nodes_view(api.services, api.accounts.nodes())
        assert here["troubles"] == {"hangs": 0, "silent": 0, "cut": 0}
        assert gone["troubles"] == {"hangs": 2, "silent": 0, "cut": 0}
        seen = await overview(api.services, PlanBoard(api.pool.hub, api.services.env.clock))
        assert seen["late"] == {"wait": 7, "hangs": 2, "silent": 0, "cut": 0, "unknown": 0, "slow": 0}


@on_virtual_time
async def test_a_drained_node_that_is_not_connected_is_shown_as_drained() -> None:
    async with running_api() as api:
        came(api, 9, "gone")
        api.pool.hub.drain_node(facts.node_id(9), True)
        [gone] = nodes_view(api.services, api.accounts.nodes())
        assert gone["is_draining"] is True


@on_virtual_time
async def test_models_are_shown_whether_loaded_or_not() -> None:
    async with running_api(speaker()) as api:
        known = [KnownModel(NAME, True, 8, 1024), KnownModel("other", is_loaded=False)]
        loaded, other = models_view(api.services, known)
        assert loaded == {
            "id": NAME, "is_loaded": True, "state": "ready", "message": "", "num_layers": 8, "size_bytes": 1024,
        }  # fmt: skip
        assert (other["is_loaded"], other["state"], other["num_layers"]) == (False, "unloaded", 0)


@on_virtual_time
async def test_the_overview_has_links_and_all_parts_and_is_json() -> None:
    async with running_api(speaker(), site=CLOSED_SITE) as api:
        api.invitation()
        api.accounts.make_key("program", None)
        view = await overview(api.services, PlanBoard(api.pool.hub, api.services.env.clock))
        assert json.loads(json.dumps(view)) == view
        assert set(view) == {
            "pool", "join_link", "browser_link", "pin", "nodes", "late", "models", "jobs", "invitations", "keys",
            "audit",
        }  # fmt: skip
        assert view["join_link"] == CLOSED_SITE.join_link()
        assert view["pin"] == CLOSED_SITE.pin
        assert view["pool"]["join_link"] is None
        assert [len(view[part]) for part in ("nodes", "models", "invitations", "keys")] == [1, 1, 1, 1]


@on_virtual_time
async def test_the_trail_is_cut_to_the_newest() -> None:
    async with running_api() as api:
        for number in range(NUM_AUDIT_LINES + 5):
            api.accounts.audit("operator", f"line {number}")
        records = read_records(api.accounts)
        assert len(records.audit) == NUM_AUDIT_LINES
        assert records.audit[0].what == f"line {NUM_AUDIT_LINES + 4}"
