"""The pool as JSON for pages: models with what they wait for, nodes with what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.api.chat import ServedModel
from coordinator.api.plan_view import Place, Seen, forecast_view
from coordinator.config import Site
from coordinator.hub import Hub
from coordinator.nodes import DeviceView, NodeView
from protocol.values import DeviceId

PUBLIC_ID_CHARACTERS = 8
"""Enough to tell nodes of one name apart."""
NOWHERE: Mapping[DeviceId, Place] = {}


def pool_view(hub: Hub, models: Mapping[str, ServedModel], site: Site, seen: Seen) -> dict[str, Any]:
    """Everything public about the pool at this moment. Only an open pool tells everybody how to join. `seen` is the
    plan, which may be a few seconds older."""
    by_hash = {model.manifest_hash: model for model in models.values()}
    nodes = [
        {"id": node_id[:PUBLIC_ID_CHARACTERS]} | node_view(node, by_hash, seen.places.get(node_id, NOWHERE))
        for node_id, node in hub.core.nodes.items()
    ]
    planned = [
        view | {"plan": _plan(seen, model)}
        for view, model in zip(model_views(hub, models), models.values(), strict=True)
    ]
    return {
        "name": hub.pool_name,
        "models": planned,
        "nodes": nodes,
        "num_waiting": len(hub.core.scheduler.state.waiting),
        "join_link": site.join_link() if site.is_open else None,
    }


def _plan(seen: Seen, model: ServedModel) -> dict[str, Any] | None:
    """What is expected of the model's lanes; None while it has none."""
    num_lanes, forecast = seen.forecasts.get(model.manifest_hash, (0, None))
    view = forecast_view(forecast) if forecast else None
    return {"num_lanes": num_lanes} | msgspec.structs.asdict(view) if view else None


def model_views(hub: Hub, models: Mapping[str, ServedModel]) -> list[dict[str, Any]]:
    """Each model: `state` is ready, loading (devices are busy getting there) or incomplete (more are needed)."""
    return [_model(hub, model) for model in models.values()]


def _model(hub: Hub, model: ServedModel) -> dict[str, Any]:
    scheduler = hub.core.scheduler
    message = scheduler.shortfall(model.manifest_hash)
    loading = bool(scheduler.num_preparing(model.manifest_hash))
    return {
        "id": model.name,
        "state": "ready" if not message else "loading" if loading else "incomplete",
        "message": message,
        "num_layers": model.num_layers,
        "context_length": model.context_length,
    }


def node_view(
    node: NodeView, models: Mapping[str, ServedModel], places: Mapping[DeviceId, Place] = NOWHERE
) -> dict[str, Any]:
    """A connected node, without its id. `models` are by manifest hash; `places` say where its devices are planned."""
    devices = [_device(device, models, places.get(device_id)) for device_id, device in node.devices.items()]
    busy = [device["state"] for device in devices]
    state = "serving" if "serving" in busy else next(iter(busy), "idle")
    return {
        "name": node.hello.name,
        "state": state,
        "is_draining": node.is_draining,
        "num_tokens": node.num_tokens,
        "num_prompt_tokens": node.num_prompt_tokens,
        "devices": devices,
    }


def _device(device: DeviceView, models: Mapping[str, ServedModel], place: Place | None) -> dict[str, Any]:
    """A device without layers has the plan's reason, unless it said itself what is wrong."""
    model = models.get(device.manifest_hash)
    return {
        "device_id": device.spec.device_id,
        "name": device.spec.name,
        "state": device.activity,
        "model": model.name if model else "",
        "layers": device.layers,
        "num_layers": model.num_layers if model else 0,
        "lane": place.lane if place and device.layers else None,
        "reason": device.reason or (place.reason if place else ""),
        "done_bytes": device.done_bytes,
        "total_bytes": device.total_bytes,
    }
