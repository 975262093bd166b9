"""How nodes reach each other: the contacts of a chain, and the links that they measure between them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import pairwise

from coordinator.nodes import NodeView
from coordinator.scheduler import commands as cmd
from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Contact
from protocol.messages import MAX_LINK_TARGETS, LinksMeasured, MeasureLinks
from protocol.values import Hop, LinkTime, NodeId, Sampling

Nodes = Mapping[NodeId, NodeView]


def pairs_of(chain: tuple[cmd.ChainStage, ...]) -> list[tuple[NodeId, NodeId]]:
    """Who sends rows or tokens to whom."""
    nodes = [stage.device.node_id for stage in chain]
    return [pair for pair in [*pairwise(nodes), (nodes[-1], nodes[0])] if pair[0] != pair[1]]


def contacts(
    nodes: Nodes, chain: tuple[cmd.ChainStage, ...], only_relayed: Set[NodeId] = frozenset()
) -> dict[NodeId, Contact]:
    """How the nodes of a chain are reached. Those in `only_relayed` are not to be tried directly."""
    reached = {stage.device.node_id for stage in chain} - only_relayed
    hellos = {node_id: nodes[node_id].hello for node_id in reached}
    return {
        node_id: Contact(hello.peer_address, hello.peer_ticket, hello.peer_fingerprint)
        for node_id, hello in hellos.items()
    }


def keepers(nodes: Nodes, chain: tuple[cmd.ChainStage, ...]) -> frozenset[DeviceKey]:
    """The devices of a chain that can keep a session's KV from one epoch to the next."""
    views = {stage.device: nodes[stage.device.node_id] for stage in chain}
    return frozenset(
        key for key, view in views.items() if view.can_recover and view.devices[key.device_id].can_truncate
    )


def strangers(nodes: Nodes, sampling: Sampling) -> frozenset[DeviceKey]:
    """Devices that this is rather not asked of, as their nodes do not know all of it."""
    if sampling.is_of_version_3:
        return frozenset()
    older = [(node_id, view) for node_id, view in nodes.items() if not view.can_recover]
    return frozenset(DeviceKey(node_id, device_id) for node_id, view in older for device_id in view.devices)


def understand(nodes: Nodes, chain: tuple[cmd.ChainStage, ...], sampling: Sampling) -> bool:
    """Whether the node that samples speaks a version that knows all that is asked of it."""
    return sampling.is_of_version_3 or nodes[chain[-1].device.node_id].can_recover


def ask_links(nodes: Nodes, command: cmd.MeasureLinks) -> MeasureLinks | None:
    """The order to measure the ways to others that are here; None: nothing to ask."""
    others = [target for target in command.targets if target in nodes and target != command.node_id]
    targets = others[:MAX_LINK_TARGETS]
    if not targets:
        return None
    nodes[command.node_id].asked_links = frozenset(targets)
    return MeasureLinks(tuple(_hop(target, nodes[target]) for target in targets))


def relayed_link(nodes: Nodes, source: NodeId, target: NodeId) -> LinkSeen | None:
    """The way through the coordinator; None: not known how long it takes."""
    own_s, other_s = nodes[source].pool_rtt_s, nodes[target].pool_rtt_s
    return None if own_s is None or other_s is None else LinkSeen(source, target, own_s + other_s)


def hear_links(nodes: Nodes, node_id: NodeId, message: LinksMeasured) -> tuple[LinkSeen, ...]:
    """What a node has measured. Only what was asked for counts."""
    view = nodes[node_id]
    view.hear_pool_rtt(message.pool_rtt_s)
    seen = [_link_seen(nodes, node_id, link) for link in message.links if link.node_id in view.asked_links]
    view.asked_links = frozenset()
    return tuple(filter(None, seen))


def _link_seen(nodes: Nodes, source: NodeId, link: LinkTime) -> LinkSeen | None:
    """None: not known. Rows that no direct link takes go to the coordinator and from there: two ways."""
    target_id = NodeId(link.node_id)
    target = nodes.get(target_id)
    if target is None:
        return None
    if link.is_direct:
        return None if link.rtt_s is None else LinkSeen(source, target_id, link.rtt_s, link.bytes_per_s)
    return relayed_link(nodes, source, target_id)


def _hop(node_id: NodeId, view: NodeView) -> Hop:
    """The way to a node outside of any chain."""
    hello = view.hello
    return Hop(node_id, 0, hello.peer_address, hello.peer_ticket, hello.peer_fingerprint)
