"""What nodes say of their devices and links, noted in their views, in the words of the scheduler. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coordinator.neighbours import hear_links
from coordinator.nodes import DeviceView, NodeView
from coordinator.scheduler import Scheduler
from coordinator.scheduler import events as ev
from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.state import DeviceKey
from protocol.messages import DeviceMeasured, Heartbeat, LinksMeasured, NodeMessage, SliceProgress, SliceReady
from protocol.values import DeviceId, DeviceWork, NodeId


class NodeNews:
    """`nodes` are the core's own. What speaks of an older order than that of now is dropped."""

    def __init__(self, scheduler: Scheduler, nodes: Mapping[NodeId, NodeView]) -> None:
        self._scheduler, self._nodes = scheduler, nodes
        self._readers: dict[type, Callable[[NodeId, Any, float], list[ev.Event]]] = {
            DeviceMeasured: self._device_measured,
            SliceProgress: self._slice_progress,
            SliceReady: self._slice_ready,
            Heartbeat: self._heartbeat,
            LinksMeasured: self._links_measured,
        }

    @property
    def kinds(self) -> frozenset[type]:
        """The messages that are read here."""
        return frozenset(self._readers)

    def events(self, node_id: NodeId, message: NodeMessage, now_s: float) -> list[ev.Event]:
        """What the scheduler is to hear of it."""
        return self._readers[type(message)](node_id, message, now_s)

    def current_view(self, node_id: NodeId, device_id: DeviceId, generation: int) -> DeviceView | None:
        """The device, if this news is about what it does now: answers to older orders are dropped."""
        if not self._scheduler.is_current(DeviceKey(node_id, device_id), generation):
            return None
        return self._nodes[node_id].devices[device_id]

    def _device_measured(self, node_id: NodeId, message: DeviceMeasured, now_s: float) -> list[ev.Event]:
        view = self.current_view(node_id, message.device_id, 0)
        if view is None or view.manifest_hash != message.manifest_hash:
            return []
        view.idle()
        return [ev.DeviceMeasured(DeviceKey(node_id, message.device_id), message.manifest_hash, message.benchmark)]

    def _slice_progress(self, node_id: NodeId, message: SliceProgress, now_s: float) -> list[ev.Event]:
        view = self.current_view(node_id, message.device_id, message.generation)
        if view is None:
            return []
        view.progress(message)
        done = (message.loading, message.done_bytes, message.total_bytes)
        return [ev.SliceProgress(DeviceKey(node_id, message.device_id), message.generation, *done)]

    def _slice_ready(self, node_id: NodeId, message: SliceReady, now_s: float) -> list[ev.Event]:
        view = self.current_view(node_id, message.device_id, message.generation)
        if view is None:
            return []
        view.serve(can_truncate=message.can_truncate)
        device, room = DeviceKey(node_id, message.device_id), message.num_kv_tokens
        return [ev.SliceReady(device, message.generation, room, message.has_prefix_cache)]

    def _heartbeat(self, node_id: NodeId, message: Heartbeat, now_s: float) -> list[ev.Event]:
        self._nodes[node_id].beat(message, now_s)
        works = [event for work in message.work for event in self._work_done(node_id, work)]
        return [*works, *_links_seen((), node_id, message.pool_rtt_s)]

    def _work_done(self, node_id: NodeId, work: DeviceWork) -> list[ev.Event]:
        """What an older assignment did says nothing about this one."""
        device = DeviceKey(node_id, work.device_id)
        if not work.generation or not self._scheduler.is_current(device, work.generation):
            return []
        self._nodes[node_id].devices[work.device_id].worked(work)
        counts = (work.num_steps, work.num_decode_rows, work.num_prompt_tokens, work.compute_s)
        return [ev.StepsSeen(device, work.generation, *counts)]

    def _links_measured(self, node_id: NodeId, message: LinksMeasured, now_s: float) -> list[ev.Event]:
        """Only what was asked for counts."""
        return _links_seen(hear_links(self._nodes, node_id, message), node_id, message.pool_rtt_s)


def _links_seen(links: tuple[LinkSeen, ...], node_id: NodeId, pool_rtt_s: float | None) -> list[ev.Event]:
    pool_rtts_s = () if pool_rtt_s is None else ((node_id, pool_rtt_s),)
    return [ev.LinksSeen(links, pool_rtts_s)] if links or pool_rtts_s else []
