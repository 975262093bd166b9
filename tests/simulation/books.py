"""The oracle's books: what must be true of each session, from the messages that go in and out."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.scheduler.commands import ChainStage
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Order
from protocol.messages import OpenSession, TokensSampled
from protocol.values import NodeId
from tests.simulation.model import DEADLY_TOKEN

MAX_BREAKS = 4
MAX_CRASHED_NODES, MAX_CRASHES = 2, 3


@dataclass
class SecondChain:
    """A chain beside the session's own, from the orders to open it. `num_rows`: what its stages have computed for
    certain, as its tail has given a token behind that; `position` is where its next token belongs."""

    epoch: int
    num_log: int
    num_rows: int
    stages: dict[int, ChainStage] = field(default_factory=dict)
    opens: dict[int, OpenSession] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)
    num_frames: int = 0
    next_row: int = 0
    position: int = 0
    is_wrong: bool = False
    """It has given a token that is not the log's."""

    @property
    def chain(self) -> tuple[ChainStage, ...]:
        return tuple(self.stages[number] for number in sorted(self.stages))

    def is_at(self, stage: int, node_id: NodeId) -> bool:
        return stage in self.stages and self.stages[stage].device.node_id == node_id

    def sampled(self, message: TokensSampled, log: list[int]) -> None:
        """What its tokens prove: the rows before them, as long as they are those of the log."""
        if message.position != self.position or self.is_wrong:
            return
        self.num_rows = self.position
        known = log[self.position : self.position + len(message.tokens)]
        self.is_wrong = known != list(message.tokens[: len(known)])
        self.position += len(known)


@dataclass
class Book:
    """What must be true of one session, from what was said about it."""

    order: Order
    log: list[int]
    epoch: int = 0
    chain: tuple[ChainStage, ...] = ()
    opened: dict[int, int] = field(default_factory=dict)
    """By stage, what each has said that it has cached."""
    num_frames: int = 0
    is_over: bool = False
    avoid: set[DeviceKey] = field(default_factory=set)
    breaks: list[str] = field(default_factory=list)
    """What stages of its chains have said since its last token."""
    crashes: list[NodeId] = field(default_factory=list)
    """Nodes whose workers have died under it since its last token, as far as another request was not the cause."""
    held: dict[ChainStage, int] = field(default_factory=dict)
    """How many rows each stage that was not told to forget it has computed for certain."""
    opens: dict[int, OpenSession] = field(default_factory=dict)
    """Of this epoch, by stage."""
    next_row: int = 0
    """Of the log, for the head."""
    second: SecondChain | None = None
    newest: int = 0
    """The last epoch that anybody was told of."""

    def __post_init__(self) -> None:
        self.newest = self.epoch

    def run_of(self, epoch: int) -> Book | SecondChain | None:
        """Its own chain or its second one, of this epoch; None if it is over."""
        if self.second is not None and epoch == self.second.epoch:
            return self.second
        return self if epoch == self.epoch and self.chain else None

    def end_second(self) -> None:
        """It may go on in the next epoch, behind what it has, until it is told to forget it."""
        if self.second is not None:
            self.held.update(dict.fromkeys(self.second.chain, self.second.num_rows))
            self.second = None

    @property
    def given_up_for(self) -> str:
        """What was said last, if it was said often enough for the request to be given up."""
        return self.breaks[-1] if len(self.breaks) >= MAX_BREAKS else ""

    @property
    def is_deadly(self) -> bool:
        """Workers die of it."""
        return DEADLY_TOKEN in self.order.prompt

    def runs_on(self, device: DeviceKey, generation: int) -> bool:
        """Whether rows of it may be there."""
        is_running = bool(self.chain) and self.opened.keys() >= set(range(1, len(self.chain))) and not self.is_over
        return is_running and any((s.device, s.generation) == (device, generation) for s in self.chain)

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its workers died of."""
        return len(set(self.crashes)) >= MAX_CRASHED_NODES or len(self.crashes) >= MAX_CRASHES

    def forget(self, node_id: NodeId) -> None:
        """That node has only what the chain of now has there."""
        self.held = {s: num for s, num in self.held.items() if s.device.node_id != node_id or s in self.chain}

    @property
    def name(self) -> str:
        return f"session {int(self.order.session_id, 16)}"
