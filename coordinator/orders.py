"""The scheduler's orders in the words of the protocol, noted in the node's view."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.effects import ToNode
from coordinator.nodes import NodeView
from coordinator.scheduler import commands as cmd
from coordinator.scheduler.state import ModelFacts
from protocol.messages import AssignSlice, MeasureDevice
from protocol.values import NodeId


def measure(nodes: Mapping[NodeId, NodeView], command: cmd.Measure) -> ToNode:
    """The device measures layers of this model's shape."""
    device = command.device
    nodes[device.node_id].devices[device.device_id].measure(command)
    return ToNode(device.node_id, MeasureDevice(device.device_id, command.manifest_hash, command.variant))


def assign(nodes: Mapping[NodeId, NodeView], command: cmd.Assign, model: ModelFacts) -> ToNode:
    """The device fetches and serves these layers of the model."""
    device = command.device
    nodes[device.node_id].devices[device.device_id].assign(command)
    message = AssignSlice(
        device.device_id,
        command.generation,
        model.name,
        command.manifest_hash,
        command.variant,
        command.layers,
        model.num_layers,
    )
    return ToNode(device.node_id, message)
