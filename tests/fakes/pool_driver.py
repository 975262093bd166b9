"""A whole pool without asyncio: a PoolCore and fake nodes, one message at a time, validated after each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from coordinator.core import HEARTBEAT_S, TICK_S, PoolCore
from coordinator.effects import DropNode, Effect, ToNode, ToUser
from coordinator.scheduler import Scheduler
from coordinator.scheduler.state import ModelFacts
from coordinator.sessions import Deliver, Failed, Order, Queued, Rerouted
from protocol.messages import (
    CoordinatorMessage,
    Heartbeat,
    NodeMessage,
    decode_coordinator_message,
    decode_node_message,
    encode_message,
)
from protocol.values import FinishReason, NodeId, Sampling, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode

MAX_STEPS = 100_000


class PoolDriver:
    """Messages to nodes wait in `mail`; a step delivers one and takes the answers back."""

    def __init__(self, *nodes: FakeNode, model: ModelFacts | None = None, scheduler: Scheduler | None = None) -> None:
        self.core = PoolCore(scheduler)
        self.now_s = 0.0
        self.nodes: dict[NodeId, FakeNode] = {}
        self.mail: deque[tuple[FakeNode, CoordinatorMessage | bytes]] = deque()
        self.items: dict[SessionId, list[Queued | Deliver | Rerouted | Failed]] = {}
        self.dropped: list[DropNode] = []
        self.carry_out(self.core.add_model(model or facts.model(), self.now_s))
        for node in nodes:
            self.join(node)

    # ------------------------------------------------------------ what happens

    def join(self, node: FakeNode) -> None:
        """The node connects, and the pool settles: it measures, is assigned layers and loads them."""
        self.nodes[node.node_id] = node
        self.carry_out(self.core.node_joined(node.hello, self.now_s))
        self.run()

    def lose(self, node: FakeNode) -> None:
        """The node dies; what was under way to it is lost."""
        self.nodes.pop(node.node_id, None)
        self.carry_out(self.core.node_lost(node.node_id, self.now_s))

    def request(
        self, number: int = 1, prompt: tuple[int, ...] = (5, 6, 7), num_tokens: int = 10, **changes: Any
    ) -> SessionId:
        sampling = changes.pop("sampling", Sampling())
        order = Order(facts.session_id(number), facts.DIGEST, prompt, num_tokens, sampling, (2,), **changes)
        self.items[order.session_id] = []
        self.carry_out(self.core.request(order, self.now_s))
        return order.session_id

    def cancel(self, session_id: SessionId) -> None:
        self.carry_out(self.core.cancel(session_id, self.now_s))

    def drain(self, number: int, on: bool = True) -> None:
        self.carry_out(self.core.drain_node(facts.node_id(number), on, self.now_s))

    def say(self, node: FakeNode, answer: NodeMessage | bytes) -> None:
        """The node says this; control messages take the way over the wire."""
        if isinstance(answer, bytes):
            self.carry_out(self.core.node_relayed(node.node_id, answer, self.now_s))
        else:
            message = decode_node_message(encode_message(answer))
            self.carry_out(self.core.node_said(node.node_id, message, self.now_s))

    def pass_time(self, seconds: float) -> None:
        """Ticks, and the heartbeats of all nodes that are not silent."""
        for step in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for node in list(self.nodes.values()):
                if not node.silent and step % round(HEARTBEAT_S / TICK_S) == 0:
                    self.say(node, Heartbeat(len(node.legs), node.num_tokens, 0))
            self.carry_out(self.core.tick(self.now_s))
            self.run()

    def wait(self, seconds: float) -> None:
        """A tick later, of which nobody has said anything."""
        self.now_s += seconds
        self.carry_out(self.core.tick(self.now_s))

    # ------------------------------------------------------------ running

    def step(self) -> bool:
        """Deliver one message; False if none waits."""
        if not self.mail:
            return False
        node, data = self.mail.popleft()
        if self.nodes.get(node.node_id) is node:
            heard = data if isinstance(data, bytes) else decode_coordinator_message(encode_message(data))
            for answer in node.hear(heard):
                if self.nodes.get(node.node_id) is node:
                    self.say(node, answer)
        return True

    def run(self) -> None:
        """Until nothing is under way."""
        self.run_until(lambda: False)

    def run_until(self, reached: Callable[[], bool]) -> None:
        for _ in range(MAX_STEPS):
            if reached() or not self.step():
                return
        raise AssertionError(f"still busy after {MAX_STEPS} steps")

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToNode(node_id, data):
                    if node_id in self.nodes:
                        self.mail.append((self.nodes[node_id], data))
                case ToUser(session_id, item):
                    self.items[session_id].append(item)
                case DropNode(node_id):
                    self.dropped.append(effect)
                    self.nodes.pop(node_id, None)
        self.validate()

    def validate(self) -> None:
        """After everything that happens."""
        self.core.validate()

    # ------------------------------------------------------------ what the user saw

    def tokens(self, session_id: SessionId) -> list[int]:
        """All delivered tokens; their positions must follow each other without gap or repetition."""
        delivered = [item for item in self.items[session_id] if isinstance(item, Deliver)]
        for before, after in pairwise(delivered):
            assert after.position == before.position + len(before.tokens)
        return [token for item in delivered for token in item.tokens]

    def finish(self, session_id: SessionId) -> FinishReason | None:
        return next(
            (i.finish_reason for i in self.items[session_id] if isinstance(i, Deliver) and i.finish_reason), None
        )

    def failure(self, session_id: SessionId) -> Failed | None:
        return next((item for item in self.items[session_id] if isinstance(item, Failed)), None)

    def places(self, session_id: SessionId) -> list[int]:
        """What the user was told about the queue."""
        return [item.place for item in self.items[session_id] if isinstance(item, Queued)]

    def chains(self, session_id: SessionId) -> list[list[int]]:
        """Node numbers of every chain that the session had."""
        routes = [item for item in self.items[session_id] if isinstance(item, Rerouted)]
        return [[facts.number_of(stage.device.node_id) for stage in route.chain] for route in routes]
