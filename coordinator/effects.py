"""What the core wants done by the shell around it."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.sessions import Deliver, Failed, Queued, Rerouted
from protocol.messages import CoordinatorMessage
from protocol.values import NodeId, SessionId


@dataclass(frozen=True, slots=True)
class ToNode:
    """Send this to the node: a control message or a data frame."""

    node_id: NodeId
    data: CoordinatorMessage | bytes


@dataclass(frozen=True, slots=True)
class ToUser:
    """News for the consumer of a session; Deliver must be committed to the token log before it is passed on."""

    session_id: SessionId
    item: Queued | Deliver | Rerouted | Failed


@dataclass(frozen=True, slots=True)
class DropNode:
    """Close this node's connection; the core has forgotten it already."""

    node_id: NodeId
    reason: str
    code: int = 1000


Effect = ToNode | ToUser | DropNode
