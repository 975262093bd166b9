"""Which data frames the coordinator passes on between nodes that cannot reach each other, and to whom."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.sessions import Session
from protocol.errors import FrameError, FrameFault
from protocol.frames import Frame, FrameKind
from protocol.values import NodeId, SessionId


def relay_target(sessions: Mapping[SessionId, Session], sender: NodeId, frame: Frame) -> NodeId | None:
    """The one node that all rows of a batch are for; None if all of them are late. Raises FrameError.

    Late rows beside current ones travel on: the receiver drops them, the others must not be lost with them."""
    if frame.kind is FrameKind.PROBE:
        raise FrameError(FrameFault.BAD_KIND, "probes are for direct links")
    targets: set[NodeId | None] = set()
    for segment in frame.segments:
        session = sessions.get(segment.session_id)
        if session is not None and session.is_current(segment.epoch):
            targets.add(session.relay_target(sender, segment))
    if None in targets or len(targets) > 1:
        raise FrameError(FrameFault.SENDER, "rows for a stage that is not the sender's neighbour")
    return targets.pop() if targets else None
