"""The pool as the operator's page shows it: what the public sees, and who, what and when behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from coordinator.accounts import Accounts, AuditEntry, InvitationView, KeyView, NodeRecord
from coordinator.api.model_desk import KnownModel
from coordinator.api.plan_view import PlanBoard
from coordinator.api.pool_view import model_views, node_view, pool_view
from coordinator.api.services import Services
from coordinator.nodes import NodeView

NUM_AUDIT_LINES = 100
TROUBLES = ("hangs", "silent", "cut")
LATE = ("wait", *TROUBLES, "unknown", "slow")
"""What late answers turned out to be (coordinator/verdict.py), and moves away from what became slow."""


class Records(NamedTuple):
    """What the database says, read in one go."""

    nodes: list[NodeRecord]
    invitations: list[InvitationView]
    keys: list[KeyView]
    audit: list[AuditEntry]


def read_records(accounts: Accounts) -> Records:
    """Blocking: call it off the event loop."""
    return Records(accounts.nodes(), accounts.invitations(), accounts.keys(), accounts.audit_trail(NUM_AUDIT_LINES))


async def overview(services: Services, plans: PlanBoard) -> dict[str, Any]:
    """Everything the operator's page shows, but for the plan, which has an address of its own: it is longer."""
    records = await services.env.run_blocking(read_records, services.accounts)
    known = await services.desk.known()
    site = services.site
    return {
        "pool": pool_view(services.hub, services.desk.models, site, plans.look()),
        "join_link": site.join_link(),
        "browser_link": site.browser_link(),
        "pin": site.pin,
        "nodes": nodes_view(services, records.nodes),
        "late": {what: services.hub.core.lateness.counts[what] for what in LATE},
        "models": models_view(services, known),
        "jobs": [asdict(job) for job in services.desk.jobs()],
        "invitations": [asdict(invitation) for invitation in records.invitations],
        "keys": [asdict(key) for key in records.keys],
        "audit": [asdict(entry) for entry in records.audit],
    }


def nodes_view(services: Services, records: Iterable[NodeRecord]) -> list[dict[str, Any]]:
    """Connected nodes first, then those that are gone, the last seen first."""
    now_s = services.env.clock.wall()
    by_hash = {model.manifest_hash: model for model in services.desk.models.values()}
    connected, known = services.hub.core.nodes, {record.node_id: record for record in records}
    here = [
        node_view(node, by_hash) | _facts(node_id, known.get(node_id), node, now_s)
        for node_id, node in connected.items()
    ]
    draining = services.hub.core.scheduler.state.draining
    troubles = services.hub.core.lateness.troubles
    gone = [
        _gone(record, now_s) | {"is_draining": node_id in draining}
        for node_id, record in known.items()
        if node_id not in connected
    ]
    return [node | {"troubles": _troubles(troubles.get(node["node_id"]))} for node in here + gone]


def models_view(services: Services, known: Iterable[KnownModel]) -> list[dict[str, Any]]:
    """Loaded or not; a model that was not opened since the start has no sizes."""
    loaded = {view["id"]: view for view in model_views(services.hub, services.desk.models)}
    return [
        {
            "id": model.name,
            "is_loaded": model.is_loaded,
            "state": loaded[model.name]["state"] if model.is_loaded else "unloaded",
            "message": loaded[model.name]["message"] if model.is_loaded else "",
            "num_layers": model.num_layers,
            "size_bytes": model.size_bytes,
        }
        for model in known
    ]


def _facts(node_id: str, record: NodeRecord | None, node: NodeView | None, now_s: float) -> dict[str, Any]:
    """What only the operator sees of a node."""
    first_seen_s = record.first_seen_s if record else now_s
    last_seen_s = record.last_seen_s if record else now_s
    return {
        "node_id": node_id,
        "first_seen_s": first_seen_s,
        "last_seen_s": now_s if node else last_seen_s,
        "is_connected": node is not None,
        "is_blocked": record.is_blocked if record else False,
        "num_sessions": node.num_sessions if node else 0,
        "tokens_per_s": node.tokens_per_s if node else 0.0,
    }


def _troubles(counted: Counter[str] | None) -> dict[str, int]:
    """What was found of the node when answers were late, since the coordinator's start."""
    return {what: counted[what] if counted else 0 for what in TROUBLES}


def _gone(record: NodeRecord, now_s: float) -> dict[str, Any]:
    state = "blocked" if record.is_blocked else "offline"
    nothing = {"name": record.name, "state": state, "devices": [], "num_tokens": 0, "num_prompt_tokens": 0}
    return nothing | _facts(record.node_id, record, None, now_s)
