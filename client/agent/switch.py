"""Who sent this frame, for which session, and where do a stage's rows go next? Pure.

Every frame from outside passes here before a worker sees it: each of its segments must belong to an open session, in
its current epoch, at the next position, from the expected neighbour, in the agreed shape. What does not is dropped
and counted; a gap (a lost frame) breaks the session, because its KV could never be right again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from client.agent.flow import Flow
from client.ipc import EndSession, IpcError, StartSession
from protocol.errors import FrameError, FrameFault
from protocol.frames import Frame, FrameKind, FrameLimits, Segment, WireDtype, decode_frame, encode_frame, segments_of
from protocol.messages import OpenSession, RowsAt, WhereAreRows
from protocol.values import KV_BLOCK_TOKENS, DeviceId, Hop, NodeId, SessionId, Variant

DTYPE_OF_VARIANT = {Variant.FLOAT32: WireDtype.FLOAT32, Variant.BFLOAT16: WireDtype.BFLOAT16}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a hidden-state row of the model looks like."""

    row_width: int
    dtype: WireDtype


@dataclass(slots=True)
class Leg:
    """This node's part in one session: one stage on one device."""

    device_id: DeviceId
    epoch: int
    stage: int
    previous: NodeId
    next: Hop
    shape: Shape
    next_position: int = 0
    is_open: bool = False
    """Its worker has said so."""
    num_cached: int = 0
    """Rows that its worker has from the cache, until the first row says how many of them are used."""
    has_gap: bool = False
    """Rows were lost, and that was reported: it can never be right again."""
    flow: Flow = field(default_factory=Flow)

    def takes(self, position: int) -> bool:
        """Whether a row at this position is the next one: the first may lie behind any block that its worker has."""
        is_behind_cached = position <= self.num_cached and position % KV_BLOCK_TOKENS == 0
        return position == self.next_position or (self.num_cached > 0 and is_behind_cached)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A checked frame for a device's worker."""

    device_id: DeviceId
    frame: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows were lost on the way: the session is broken at this stage."""

    session_id: SessionId
    epoch: int
    stage: int


@dataclass(slots=True)
class Switch:
    """The table of legs and links of one node."""

    node_id: NodeId
    limits: FrameLimits = field(default_factory=FrameLimits)
    num_refused: int = 0
    _legs: dict[SessionId, dict[DeviceId, Leg]] = field(default_factory=dict)
    """By session and device: a node may have several stages of a session, each on a device of its own. In the next
    epoch a device may have another stage."""
    _links: list[Hop] = field(default_factory=list)
    _link_of: dict[NodeId, int] = field(default_factory=dict)

    # ------------------------------------------------------------ sessions

    def open(self, message: OpenSession, shape: Shape) -> StartSession:
        """Register a leg; the answer is what its worker is told. A worker ends, or goes on with, an older epoch by
        itself."""
        session_id, stage = SessionId(message.session_id), message.stage
        leg = Leg(
            message.device_id, message.epoch, stage, NodeId(message.previous.node_id), message.next, shape,
            message.num_kept_tokens, flow=_flow(message),
        )  # fmt: skip
        self._legs.setdefault(session_id, {})[message.device_id] = leg
        alone = message.num_stages == 1
        return StartSession(
            session_id=message.session_id,
            epoch=message.epoch,
            stage=stage,
            num_stages=message.num_stages,
            num_prompt_tokens=message.num_prompt_tokens,
            num_reserved_tokens=message.num_reserved_tokens,
            next_link=None if alone else self._link(message.next),
            next_stage=message.next.stage,
            sampling=message.sampling,
            stop=message.stop,
            history=message.history,
            num_kept_tokens=message.num_kept_tokens,
            next_from=message.next_from,
            prefix_hashes=message.prefix_hashes,
        )

    def close(
        self, session_id: SessionId, epoch: int, prefix_hashes: tuple[str, ...] = ()
    ) -> list[tuple[DeviceId, EndSession]]:
        """Forget the session's legs up to that epoch; what their workers are told. The names are of that very epoch."""
        ended = [leg for leg in self._legs.get(session_id, {}).values() if leg.epoch <= epoch]
        return [self._end(session_id, leg.device_id, prefix_hashes if leg.epoch == epoch else ()) for leg in ended]

    def close_all(self, device_id: DeviceId | None = None) -> list[tuple[DeviceId, EndSession]]:
        """Forget every leg (of one device); what the workers are told."""
        ended = [(session_id, leg.device_id) for session_id, leg in self._all() if device_id in (None, leg.device_id)]
        return [self._end(session_id, ended_id) for session_id, ended_id in ended]

    def leg(self, session_id: SessionId, epoch: int, device_id: DeviceId) -> Leg | None:
        """The device's leg in that session and epoch."""
        leg = self._legs.get(session_id, {}).get(device_id)
        return leg if leg is not None and leg.epoch == epoch else None

    def legs_towards(self, node_id: NodeId) -> list[tuple[SessionId, Leg]]:
        """Legs whose rows go to that neighbour."""
        return [(session_id, leg) for session_id, leg in self._all() if leg.next.node_id == node_id]

    def legs_of(self, session_id: SessionId) -> list[Leg]:
        """This node's legs in that session."""
        return list(self._legs.get(session_id, {}).values())

    @property
    def num_sessions(self) -> int:
        return len(self._legs)

    def waits_for(self, device_id: DeviceId) -> bool:
        """Whether a session has not been opened there yet, or its rows have not come out again."""
        legs = (leg for _, leg in self._all() if leg.device_id == device_id)
        return any(leg.flow.is_waiting or not leg.is_open for leg in legs)

    def computes_on(self, device_id: DeviceId) -> bool:
        """Whether rows of a session that its worker has opened have not come out again: only those can it be at."""
        return any(leg.flow.is_waiting and leg.is_open for _, leg in self._all() if leg.device_id == device_id)

    @property
    def devices(self) -> set[DeviceId]:
        """The devices that have a part in some session."""
        return {leg.device_id for _, leg in self._all()}

    def validate(self) -> None:
        """What must hold between events (AssertionError)."""
        assert all(self._legs.values()), "a session without a leg is forgotten"
        assert all(leg.device_id == device_id for legs in self._legs.values() for device_id, leg in legs.items())
        assert self._link_of == {NodeId(hop.node_id): link for link, hop in enumerate(self._links)}, "links are 1:1"

    # ------------------------------------------------------------ frames

    def neighbour(self, link: int) -> Hop:
        """Where frames of this link go; raises IpcError for a link that no worker was given."""
        if link >= len(self._links):
            raise IpcError(f"frame for link {link} of {len(self._links)}")
        return self._links[link]

    def where(
        self, message: WhereAreRows, now_s: float, silent_s: Callable[[DeviceId], float | None] = lambda _: None
    ) -> RowsAt | None:
        """How far the session's rows have come through that stage; None if it is not open here in that epoch.

        `silent_s`: what is known of a device's worker."""
        legs = self._legs.get(SessionId(message.session_id), {}).values()
        leg = next((leg for leg in legs if (leg.stage, leg.epoch) == (message.stage, message.epoch)), None)
        if leg is None:
            return None
        return RowsAt(
            message.session_id,
            message.epoch,
            message.stage,
            leg.next_position,
            leg.flow.num_sent,
            leg.flow.waiting_s(now_s),
            silent_s(leg.device_id),
        )

    def passed_on(self, device_id: DeviceId, data: bytes, now_s: float) -> None:
        """The device's worker has given this frame out for a neighbour. Raises IpcError for what is no frame."""
        try:
            segments = segments_of(data)
        except FrameError as error:
            raise IpcError(f"what the worker sent is no frame: {error}") from None
        for segment in segments:
            leg = self.leg(segment.session_id, segment.epoch, device_id)
            if leg is not None:
                leg.flow.went_on(segment.position + segment.num_tokens, now_s)

    def admit(self, data: bytes, sender: NodeId | None, now_s: float = 0.0) -> tuple[list[Delivery], list[Gap]]:
        """Check a frame from a neighbour (None: the coordinator, which has checked the sender itself).

        Returns what the workers get and the sessions that lost rows. Anything wrong is counted, nothing is raised."""
        try:
            frame = decode_frame(data, self.limits)
        except FrameError:
            self.num_refused += 1
            return [], []
        targets: list[DeviceId | None] = []
        gaps: list[Gap] = []
        for segment in frame.segments:
            try:
                targets.append(self._check(frame, segment, sender, now_s))
            except FrameError as error:
                targets.append(None)
                gaps += self._refuse(segment, error)
        if len(set(targets)) == 1 and targets[0] is not None:
            return [Delivery(targets[0], data)], gaps
        devices = [device for device in Counter(targets) if device is not None]
        return [Delivery(device, _select(frame, [t == device for t in targets])) for device in devices], gaps

    def _check(self, frame: Frame, segment: Segment, sender: NodeId | None, now_s: float) -> DeviceId:
        """The device this segment is for; raises FrameError. Takes note of the position."""
        leg = self._leg_for(segment)
        if leg is None:
            raise FrameError(FrameFault.UNKNOWN_SESSION, f"stage {segment.stage}")
        if segment.epoch != leg.epoch:
            raise FrameError(FrameFault.EPOCH, f"epoch {segment.epoch}, now {leg.epoch}")
        if sender is not None and sender != leg.previous:
            raise FrameError(FrameFault.SENDER, f"stage {segment.stage} takes rows from another node")
        expected_kind = FrameKind.HIDDEN if leg.stage else FrameKind.TOKENS
        shape = leg.shape if leg.stage else Shape(1, WireDtype.INT32)
        if (frame.kind, frame.row_width, frame.dtype) != (expected_kind, shape.row_width, shape.dtype):
            raise FrameError(FrameFault.BAD_SHAPE, f"{frame.kind.name} rows of {frame.row_width}")
        if not leg.takes(segment.position):
            raise FrameError(FrameFault.POSITION, f"position {segment.position}, expected {leg.next_position}")
        leg.next_position, leg.num_cached = segment.position + segment.num_tokens, 0
        leg.flow.came_in(leg.next_position, now_s)
        return leg.device_id

    def _refuse(self, segment: Segment, error: FrameError) -> list[Gap]:
        self.num_refused += 1
        leg = self._leg_for(segment)
        is_gap = error.code is FrameFault.POSITION and leg is not None and segment.position > leg.next_position
        if not is_gap or leg is None or leg.has_gap:
            return []
        leg.has_gap = True
        return [Gap(segment.session_id, segment.epoch, segment.stage)]

    # ------------------------------------------------------------ parts

    def _leg_for(self, segment: Segment) -> Leg | None:
        """The newest leg at that stage: one of an older epoch may wait to be closed."""
        legs = [leg for leg in self._legs.get(segment.session_id, {}).values() if leg.stage == segment.stage]
        return max(legs, key=lambda leg: leg.epoch, default=None)

    def _link(self, hop: Hop) -> int:
        """The number of the link to that neighbour; its address is refreshed, as it may have come back elsewhere."""
        node_id = NodeId(hop.node_id)
        if node_id not in self._link_of:
            self._link_of[node_id] = len(self._links)
            self._links.append(hop)
        self._links[self._link_of[node_id]] = hop
        return self._link_of[node_id]

    def _all(self) -> Iterator[tuple[SessionId, Leg]]:
        return ((session_id, leg) for session_id, legs in self._legs.items() for leg in legs.values())

    def _end(
        self, session_id: SessionId, device_id: DeviceId, prefix_hashes: tuple[str, ...] = ()
    ) -> tuple[DeviceId, EndSession]:
        legs = self._legs[session_id]
        leg = legs.pop(device_id)
        if not legs:
            del self._legs[session_id]
        return leg.device_id, EndSession(session_id, leg.epoch, prefix_hashes)


def _flow(message: OpenSession) -> Flow:
    """A tail says nothing about the prompt's rows but the last, and then the token that comes after each row."""
    if message.stage == message.num_stages - 1:
        return Flow(num_silent=message.num_prompt_tokens - 1, lead=1)
    return Flow(num_sent=message.next_from)


def _select(frame: Frame, keep: Sequence[bool]) -> bytes:
    """The frame with only some of its segments and their rows."""
    row_bytes = frame.row_width * frame.dtype.itemsize
    payload, start = memoryview(frame.payload), 0
    segments, rows = [], []
    for segment, kept in zip(frame.segments, keep, strict=True):
        stop = start + segment.num_tokens * row_bytes
        if kept:
            segments.append(segment)
            rows.append(payload[start:stop])
        start = stop
    return encode_frame(Frame(frame.kind, frame.dtype, frame.row_width, tuple(segments), b"".join(rows)))
