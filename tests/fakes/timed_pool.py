"""A whole pool on virtual time: rows take time to travel and to be computed, and nodes hang, stop or lose each other.

The coordinator is the real core, agents count rows with the real Flow; only the model is a toy (fake_node.py).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from client.agent.flow import Flow
from coordinator.core import HEARTBEAT_S, TICK_S
from coordinator.effects import Effect
from protocol import messages as m
from protocol.frames import decode_frame
from protocol.values import DeviceWork, NodeId, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode
from tests.fakes.pool_driver import PoolDriver

LATENCY_S = 0.005
VALIDATE_S = 5.0
"""How often invariants are derived anew: after each message that would take most of the time."""

Data = m.CoordinatorMessage | bytes
Answer = m.NodeMessage | bytes


@dataclass
class Passage:
    """What an agent has seen of one stage of a session."""

    order: m.OpenSession
    flow: Flow
    num_received: int = 0


@dataclass
class Work:
    """Since the last heartbeat."""

    num_steps: int = 0
    num_decode_rows: int = 0
    num_prompt_rows: int = 0
    compute_s: float = 0.0


@dataclass
class Computer:
    """A node's agent and worker, and what is wrong with them."""

    fake: FakeNode
    worker_hangs: bool = False
    is_stopped: bool = False
    """The whole node: agent and worker."""
    slowdown: float = 1.0
    loses_rows: bool = False
    """Its worker throws away what it is given, and goes on with all else."""
    passages: dict[tuple[SessionId, int], Passage] = field(default_factory=dict)
    inbox: list[tuple[Data, NodeId | None]] = field(default_factory=list)
    """What came while it was stopped."""
    waiting: list[Data] = field(default_factory=list)
    """For the worker."""
    finished: list[Data] | None = None
    """A step whose result the worker could not give out, as it hangs."""
    is_busy: bool = False
    generation: int = 0
    num_layers: int = 0
    work: Work = field(default_factory=Work)

    @property
    def node_id(self) -> NodeId:
        return self.fake.node_id

    @property
    def layer_s(self) -> float:
        return self.fake.benchmark.decode[0].layer_s


class TimedPool(PoolDriver):
    """Node n is `computers[n]`. Rows go directly to a node that has an address, else through the coordinator."""

    def __init__(self, *nodes: FakeNode, **options: object) -> None:
        self.computers: dict[int, Computer] = {}
        self.cut: set[tuple[int, int]] = set()
        """Rows sent from the first to the second directly are lost without a word."""
        self.num_direct = self.num_relayed = 0
        self.num_to_lose = 0
        """So many relayed frames the coordinator loses, which is a defect of its own."""
        self.is_stalled = False
        """The coordinator's event loop stands still."""
        self._validated_s = 0.0
        self._unread: list[Callable[[], None]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        super().__init__(*nodes, **options)  # type: ignore[arg-type]
        self._after(TICK_S, self._tick)

    # ------------------------------------------------------------ time

    def advance(self, seconds: float) -> None:
        """Everything that happens in that time."""
        self.advance_until(lambda: False, seconds)

    def advance_until(self, reached: Callable[[], bool], limit_s: float = 120.0) -> float:
        """Until it is so; returns how long that took. Without an end in `limit_s` it returns that."""
        start_s = self.now_s
        while not reached():
            at_s = min(self._events[0][0] if self._events else start_s + limit_s, self._look_s())
            if at_s > start_s + limit_s:
                self.now_s = start_s + limit_s
                break
            self.now_s = max(self.now_s, at_s)
            if self._events and self._events[0][0] <= at_s:
                heapq.heappop(self._events)[2]()
            else:
                self.carry_out(self.core.look(self.now_s))
        return self.now_s - start_s

    def _look_s(self) -> float:
        """As the hub does: when the core wants to look, but never twice within 10 ms."""
        return float("inf") if self.is_stalled else max(self.core.next_look_s, self.now_s + 0.01)

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + seconds, next(self._count), event))

    def _tick(self) -> None:
        self._after(TICK_S, self._tick)
        if not self.is_stalled:
            self.carry_out(self.core.tick(self.now_s))

    def stall(self, seconds: float, *, reads_first: bool) -> None:
        """The coordinator stands still; then it reads what came meanwhile, before or after it looks at its clock."""
        self.is_stalled = True
        self.advance(seconds)
        self.is_stalled = False
        if not reads_first:
            self.carry_out(self.core.tick(self.now_s))
        unread, self._unread = self._unread, []
        for read in unread:
            read()
        self.carry_out(self.core.tick(self.now_s))

    # ------------------------------------------------------------ the driver's

    def validate(self) -> None:
        if self.now_s >= self._validated_s + VALIDATE_S:
            self._validated_s = self.now_s
            super().validate()

    def join(self, node: FakeNode) -> None:
        self.nodes[node.node_id] = node
        self.computers[facts.number_of(node.node_id)] = Computer(node)
        self.carry_out(self.core.node_joined(node.hello, self.now_s))
        self._after(HEARTBEAT_S, lambda: self._beat(node))
        self.advance(0.1)

    def rejoin(self, number: int) -> None:
        """The node comes back after its connection was ended; it knows nothing of before."""
        old = self.computers[number].fake
        fake = FakeNode(number, *old.hello.devices, address=old.hello.peer_address)
        fake.benchmark = old.benchmark
        self.join(fake)

    def carry_out(self, effects: list[Effect]) -> None:
        super().carry_out(effects)
        while self.mail:
            fake, data = self.mail.popleft()
            self._after(LATENCY_S, lambda fake=fake, data=data: self._arrive(fake, data, None))  # type: ignore[misc]

    def computer(self, node_id: str) -> Computer:
        return self.computers[facts.number_of(node_id)]

    def _beat(self, node: FakeNode) -> None:
        computer = self.computer(node.node_id)
        if self.nodes.get(node.node_id) is not node:
            return
        self._after(HEARTBEAT_S, lambda: self._beat(node))
        if not computer.is_stopped:
            work, computer.work = computer.work, Work()
            done = DeviceWork(
                facts.CPU, computer.generation, work.num_steps, work.num_decode_rows, work.num_prompt_rows,
                work.compute_s,
            )  # fmt: skip
            self._say_later(node, m.Heartbeat(len(node.legs), node.num_tokens, 0, (done,) if work.num_steps else ()))

    def _say_later(self, node: FakeNode, answer: Answer) -> None:
        self._after(LATENCY_S, lambda: self._read(lambda: self._say_now(node, answer)))

    def _read(self, read: Callable[[], None]) -> None:
        if self.is_stalled:
            self._unread.append(read)
        else:
            read()

    def _say_now(self, node: FakeNode, answer: Answer) -> None:
        if isinstance(answer, bytes) and self.num_to_lose:
            self.num_to_lose -= 1
        elif self.nodes.get(node.node_id) is node:
            self.say(node, answer)

    # ------------------------------------------------------------ agents

    def _arrive(self, fake: FakeNode, data: Data, sender: NodeId | None) -> None:
        if self.nodes.get(fake.node_id) is not fake:
            return
        computer = self.computer(fake.node_id)
        if computer.is_stopped:
            computer.inbox.append((data, sender))
            return
        match data:
            case m.WhereAreRows():
                self._say_later(fake, self._where(computer, data))
            case m.MeasureDevice() | m.AssignSlice():
                if isinstance(data, m.AssignSlice):
                    computer.generation, computer.num_layers = data.generation, data.layers.stop - data.layers.start
                for answer in fake.hear(data):
                    self._say_later(fake, answer)
            case _:
                self._note(computer, data)
                computer.waiting.append(data)
                self._start_step(computer)

    def _where(self, computer: Computer, asked: m.WhereAreRows) -> m.NodeMessage:
        key = SessionId(asked.session_id), asked.stage
        passage = computer.passages.get(key)
        if passage is None or passage.order.epoch != asked.epoch:
            return m.SessionBroken(asked.session_id, asked.epoch, asked.stage, "not_open", "It is not open here.")
        flow = passage.flow
        return m.RowsAt(
            key[0], asked.epoch, key[1], passage.num_received, flow.num_sent, flow.waiting_s(self.now_s)
        )  # fmt: skip

    def _note(self, computer: Computer, data: Data) -> None:
        match data:
            case m.OpenSession():
                is_tail = data.stage == data.num_stages - 1
                flow = Flow(num_silent=data.num_prompt_tokens - 1, lead=1) if is_tail else Flow()
                computer.passages[SessionId(data.session_id), data.stage] = Passage(data, flow)
            case m.CloseSession(session_id, epoch):
                for key, passage in list(computer.passages.items()):
                    if key[0] == session_id and passage.order.epoch <= epoch:
                        del computer.passages[key]
            case bytes():
                for segment in decode_frame(data).segments:
                    known = computer.passages.get((segment.session_id, segment.stage))
                    if known is not None and known.order.epoch == segment.epoch:
                        known.num_received = segment.position + segment.num_tokens
                        known.flow.came_in(known.num_received, self.now_s)

    def _give_out(self, computer: Computer, answer: Answer) -> None:
        """The worker's result, at the agent."""
        if isinstance(answer, m.TokensSampled):
            for key, passage in computer.passages.items():
                if key[0] == answer.session_id and passage.order.epoch == answer.epoch and passage.flow.lead:
                    passage.flow.went_on(answer.position + len(answer.tokens), self.now_s)
        if not isinstance(answer, bytes):
            self._say_later(computer.fake, answer)
            return
        [segment] = decode_frame(answer).segments
        for (session_id, _), passage in computer.passages.items():
            hop = passage.order.next
            if session_id == segment.session_id and hop.stage == segment.stage:
                passage.flow.went_on(segment.position + segment.num_tokens, self.now_s)
                self._send_rows(computer, hop.node_id if hop.address else None, answer)

    def _send_rows(self, computer: Computer, target: str | None, frame: bytes) -> None:
        if target is None:
            self.num_relayed += 1
            self._say_later(computer.fake, frame)
            return
        self.num_direct += 1
        if (facts.number_of(computer.node_id), facts.number_of(target)) not in self.cut:
            fake = self.computer(target).fake
            self._after(LATENCY_S, lambda: self._arrive(fake, frame, computer.node_id))

    # ------------------------------------------------------------ workers

    def _start_step(self, computer: Computer) -> None:
        """Everything that waits is one step, as in the real worker."""
        if computer.is_busy or computer.worker_hangs or computer.is_stopped or not computer.waiting:
            return
        computer.is_busy = True
        batch, computer.waiting = computer.waiting, []
        num_decode, num_prompt = _rows_in(batch)
        took_s = 0.0
        if num_decode + num_prompt:
            prompt_s = num_prompt * computer.fake.benchmark.prefill_layer_s_per_token
            took_s = computer.num_layers * computer.slowdown * (computer.layer_s + prompt_s)
            work = computer.work
            computer.work = Work(
                work.num_steps + 1, work.num_decode_rows + num_decode, work.num_prompt_rows + num_prompt,
                work.compute_s + took_s,
            )  # fmt: skip
        self._after(took_s + 1e-4, lambda: self._end_step(computer, batch))

    def _end_step(self, computer: Computer, batch: list[Data]) -> None:
        if computer.worker_hangs or computer.is_stopped:
            computer.finished = batch
            return
        computer.is_busy = False
        for data in batch:
            if not (computer.loses_rows and isinstance(data, bytes)):
                for answer in computer.fake.hear(data):
                    self._give_out(computer, answer)
        self._start_step(computer)

    def wake(self, computer: Computer) -> None:
        """SIGCONT: it goes on as if nothing had been."""
        computer.worker_hangs = computer.is_stopped = False
        if computer.finished is not None:
            batch, computer.finished = computer.finished, None
            self._end_step(computer, batch)
        inbox, computer.inbox = computer.inbox, []
        for data, sender in inbox:
            self._arrive(computer.fake, data, sender)
        self._start_step(computer)


def _rows_in(batch: list[Data]) -> tuple[int, int]:
    """Decode rows, and prompt rows."""
    sizes = [segment.num_tokens for data in batch if isinstance(data, bytes) for segment in decode_frame(data).segments]
    return sum(size for size in sizes if size == 1), sum(size for size in sizes if size > 1)
