"""What an operator can look at and change. The gate (access.py) lets only operators' sessions in here; every change is
written to the audit trail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from coordinator.accounts import AccountError, InvitationView
from coordinator.api.access import operator_of
from coordinator.api.bodies import Body, read_as
from coordinator.api.errors import shown
from coordinator.api.operator_view import overview
from coordinator.api.plan_view import PlanBoard
from coordinator.api.services import Services
from coordinator.api.session_routes import name_of
from protocol.values import NodeId

T = TypeVar("T")

REMOVED = "The operator removed this machine from the pool."

Label = Annotated[str, Field(max_length=1000)]
"""Its real limits are the accounts' own, with their sentence."""
Spec = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]+$")]
ModelName = Annotated[str, Field(min_length=1, max_length=64)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Nothing(Body):
    """For what needs no more words than its address."""


class Drain(Body):
    on: bool


class AddModel(Body):
    spec: Spec
    name: ModelName | None = None


class Invite(Body):
    label: Label
    allows_chat: bool
    allows_nodes: bool
    max_uses: int | None = None
    expires_in_s: Seconds | None = None


class MakeKey(Body):
    label: Label
    expires_in_s: Seconds | None = None


class OperatorRoutes:
    """All of them are below /api/operator."""

    def __init__(self, services: Services, plans: PlanBoard) -> None:
        self._services = services
        self._plans = plans
        self._hub = services.hub
        self._desk = services.desk
        self._accounts = services.accounts
        self._site = services.site
        self.router = APIRouter(prefix="/api/operator")
        routes: list[tuple[str, str, Callable[..., Awaitable[Any]]]] = [
            ("GET", "/overview", self.overview),
            ("GET", "/plan", self.plan),
            ("POST", "/nodes/{node_id}/drain", self.drain_node),
            ("POST", "/nodes/{node_id}/remove", self.remove_node),
            ("POST", "/nodes/{node_id}/unblock", self.unblock_node),
            ("POST", "/models", self.add_model),
            ("POST", "/models/{name:path}/load", self.load_model),
            ("POST", "/models/{name:path}/unload", self.unload_model),
            ("DELETE", "/models/{name:path}", self.remove_model),
            ("POST", "/invitations", self.invite),
            ("DELETE", "/invitations/{invitation_id}", self.revoke_invitation),
            ("POST", "/keys", self.make_key),
            ("DELETE", "/keys/{key_id}", self.revoke_key),
        ]
        for method, path, route in routes:
            self.router.add_api_route(path, route, methods=[method], response_model=None)

    async def overview(self, request: Request) -> dict[str, Any]:
        """The whole page's data."""
        operator_of(request)
        return await overview(self._services, self._plans)

    async def plan(self, request: Request) -> Response:
        """Who holds what and why, what is expected of it, and what one more device would add."""
        operator_of(request)
        return Response(msgspec.json.encode(self._plans.look().view), media_type="application/json")

    # ------------------------------------------------------------ nodes

    async def drain_node(self, request: Request, node_id: str) -> dict[str, Any]:
        """Give it no new requests, or give it some again; running answers stay where they are."""
        body = await read_as(Drain, request)
        known = {record.node_id for record in await self._run(self._accounts.nodes)}
        if node_id not in known and NodeId(node_id) not in self._hub.core.nodes:
            raise AccountError("not_found")
        self._hub.drain_node(NodeId(node_id), body.on)
        await self._audit(request, f"{'drains' if body.on else 'uses again'} machine {_short(node_id)}")
        return {"node_id": node_id, "is_draining": body.on}

    async def remove_node(self, request: Request, node_id: str) -> dict[str, Any]:
        """Drop it and never let it in again, until it is unblocked. Its answers go on elsewhere."""
        await read_as(Nothing, request)
        await self._run(self._accounts.block_node, node_id)
        self._hub.remove_node(NodeId(node_id), REMOVED)
        await self._audit(request, f"removed machine {_short(node_id)}")
        return {"node_id": node_id, "is_blocked": True}

    async def unblock_node(self, request: Request, node_id: str) -> dict[str, Any]:
        """Let it in again when it comes."""
        await read_as(Nothing, request)
        await self._run(self._accounts.unblock_node, node_id)
        await self._audit(request, f"unblocked machine {_short(node_id)}")
        return {"node_id": node_id, "is_blocked": False}

    # ------------------------------------------------------------ models

    async def add_model(self, request: Request) -> Response:
        """Begin to add a model from a folder, a .gguf file or the hub; the job tells how it goes."""
        body = await read_as(AddModel, request)
        job = self._desk.add(body.spec, body.name)
        await self._audit(request, f"adds model {shown(body.spec, 200)}")
        return JSONResponse(asdict(job), 202)

    async def load_model(self, request: Request, name: str) -> Response:
        """Begin to serve a model that is known."""
        await read_as(Nothing, request)
        job = self._desk.load(name)
        await self._audit(request, f"loads model {shown(name, 100)}")
        return JSONResponse(asdict(job), 202)

    async def unload_model(self, request: Request, name: str) -> dict[str, Any]:
        """Serve it no more. It stays known."""
        await read_as(Nothing, request)
        self._desk.unload(name)
        await self._audit(request, f"unloaded model {shown(name, 100)}")
        return {"id": name, "is_loaded": False}

    async def remove_model(self, request: Request, name: str) -> dict[str, Any]:
        """Forget it; its files stay."""
        operator_of(request)
        await self._desk.remove(name)
        await self._audit(request, f"removed model {shown(name, 100)}")
        return {"id": name, "is_removed": True}

    # ------------------------------------------------------------ invitations and keys

    async def invite(self, request: Request) -> dict[str, Any]:
        """A new invitation, in the forms that it is good for. The token is in these links and nowhere else."""
        body = await read_as(Invite, request)
        view, token = await self._run(self._make_invitation, body)
        await self._audit(request, f"made invitation {view.invitation_id} ({shown(view.label, 64)})")
        return {
            "invitation": asdict(view),
            "join_link": self._site.join_link(token) if view.allows_nodes else "",
            "browser_link": self._site.browser_link(token) if view.allows_chat else "",
        }

    async def revoke_invitation(self, request: Request, invitation_id: str) -> dict[str, Any]:
        """It lets nobody in any more, and who chats by it is signed out."""
        operator_of(request)
        await self._run(self._accounts.revoke_invitation, invitation_id)
        await self._audit(request, f"revoked invitation {_short(invitation_id, 16)}")
        return {"invitation_id": invitation_id, "is_revoked": True}

    async def make_key(self, request: Request) -> dict[str, Any]:
        """A new API key. The secret is in this answer and nowhere else."""
        body = await read_as(MakeKey, request)
        view, secret = await self._run(self._accounts.make_key, body.label, body.expires_in_s)
        await self._audit(request, f"made key {view.key_id} ({shown(view.label, 64)})")
        return {"key": asdict(view), "secret": secret}

    async def revoke_key(self, request: Request, key_id: str) -> dict[str, Any]:
        """It opens nothing from now on."""
        operator_of(request)
        await self._run(self._accounts.revoke_key, key_id)
        await self._audit(request, f"revoked key {_short(key_id)}")
        return {"key_id": key_id, "is_revoked": True}

    # ------------------------------------------------------------ common

    def _make_invitation(self, body: Invite) -> tuple[InvitationView, str]:
        return self._accounts.invite(
            body.label,
            allows_chat=body.allows_chat,
            allows_nodes=body.allows_nodes,
            max_uses=body.max_uses,
            expires_in_s=body.expires_in_s,
        )

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await self._services.env.run_blocking(function, *args)

    async def _audit(self, request: Request, what: str) -> None:
        await self._run(self._accounts.audit, name_of(operator_of(request)), what)


def _short(identifier: str, num_characters: int = 8) -> str:
    """Enough of an id for the trail; it came in an address."""
    return shown(identifier[:num_characters])[1:-1]
