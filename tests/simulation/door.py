"""What the oracle knows of one agent's door: which rows may pass to which worker, in the order in which the agent
decides it. Between the two, orders overtake rows (shell/lanes.py), so that the worker cannot tell any more."""

from __future__ import annotations

from dataclasses import dataclass

from client import ipc
from client.agent.workers import Workers
from protocol.frames import Segment, decode_frame
from protocol.values import KV_BLOCK_TOKENS, DeviceId, SessionId
from tests.simulation.history import History


@dataclass
class _Open:
    start: ipc.StartSession
    next_position: int
    has_begun: bool = False

    def begins_at(self, position: int) -> bool:
        """Whether its first row may be this one: the worker has said what it has, which is not known here. A worker
        that is given other rows than it has blames whoever let them in."""
        is_block = position % KV_BLOCK_TOKENS == 0
        has_names = position // KV_BLOCK_TOKENS <= len(self.start.prefix_hashes)
        return not self.has_begun and not self.start.num_kept_tokens and is_block and has_names


class WatchedWorkers(Workers):
    """The agent's workers: rows for them must be the next ones of a session that is open there at that very epoch,
    because that is what the agent's switch is for."""

    host: str
    history: History

    def watch(self, host: str, history: History) -> None:
        """Say once where this is, before anything else."""
        self.host, self.history = host, history
        self._open: dict[tuple[DeviceId, SessionId], _Open] = {}

    def tell(self, device_id: DeviceId, message: ipc.AgentMessage) -> None:
        match message:
            case ipc.StartSession(session_id=session_id):
                self._open[device_id, SessionId(session_id)] = _Open(message, message.num_kept_tokens)
            case ipc.EndSession(session_id=session_id, epoch=epoch):
                current = self._open.get((device_id, SessionId(session_id)))
                if current is not None and current.start.epoch <= epoch:
                    del self._open[device_id, SessionId(session_id)]
            case ipc.LoadSlice():
                self._open = {key: current for key, current in self._open.items() if key[0] != device_id}
        super().tell(device_id, message)

    def pass_frame(self, device_id: DeviceId, frame: bytes) -> bool:
        for segment in decode_frame(frame).segments:
            self._check(device_id, segment)
        return super().pass_frame(device_id, frame)

    def _check(self, device_id: DeviceId, segment: Segment) -> None:
        name = f"{self.host} {device_id}: the agent lets rows of session {int(segment.session_id, 16)} in"
        current = self._open.get((device_id, segment.session_id))
        if current is None:
            self.history.blame(f"{name}, which is not open")
            return
        if current.begins_at(segment.position):
            current.next_position = segment.position
        current.has_begun = True
        seen = (segment.epoch, segment.stage, segment.position)
        wanted = (current.start.epoch, current.start.stage, current.next_position)
        self.history.expect(
            seen == wanted, f"{name} that are wrong: (epoch, stage, position) are {seen}, expected {wanted}"
        )
        current.next_position += segment.num_tokens
