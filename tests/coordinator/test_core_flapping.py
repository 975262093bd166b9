"""A node that comes and goes every few seconds: how often others pay for it."""

from __future__ import annotations

import pytest

from coordinator.core import HEARTBEAT_S, TICK_S
from protocol.messages import Heartbeat
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.pool_driver import PoolDriver

UP_S = DOWN_S = 5.0
STEPS_PER_TICK = 6
"""Messages that nodes hear in a tick: answers take a while."""
NUM_TOKENS = 200


class Swarm:
    """Steady nodes, one that flaps, and users who always want an answer."""

    def __init__(self, num_steady: int, num_users: int, flapping: FakeNode) -> None:
        self.driver = PoolDriver(*(FakeNode(n, facts.spec(8), layer_s=0.02) for n in range(2, 2 + num_steady)))
        self.flapping = flapping
        self.num_users = num_users
        self.num_asked = 0
        self.num_losses = 0
        self.driver.pass_time(30)

    def tick(self) -> None:
        driver = self.driver
        driver.now_s += TICK_S
        for node in list(driver.nodes.values()):
            if driver.now_s % HEARTBEAT_S < TICK_S:
                driver.say(node, Heartbeat(len(node.legs), node.num_tokens, 0))
        driver.carry_out(driver.core.tick(driver.now_s))
        for _ in range(STEPS_PER_TICK * self.num_users):
            driver.step()
        while len(driver.core.sessions) < self.num_users:
            self.num_asked += 1
            driver.request(self.num_asked, num_tokens=NUM_TOKENS)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.tick()

    def flap(self) -> None:
        """Up, then gone."""
        self.driver.nodes[self.flapping.node_id] = self.flapping
        self.driver.carry_out(self.driver.core.node_joined(self.flapping.hello, self.driver.now_s))
        self.pass_time(UP_S)
        running = [s for s in self.driver.core.sessions.values() if s.chain]
        self.num_losses += any(stage.device.node_id == self.flapping.node_id for s in running for stage in s.chain)
        self.flapping.legs.clear()
        self.driver.lose(self.flapping)
        self.pass_time(DOWN_S)

    def replays(self) -> int:
        """Chains beyond each session's first."""
        return sum(max(0, len(self.driver.chains(session)) - 1) for session in self.driver.items)


@pytest.mark.parametrize("num_users", [1, 2])
def test_a_node_that_flaps_for_ten_minutes_costs_three_moves_at_most(num_users: int) -> None:
    """It is the fastest of the pool, so that nothing but its flapping speaks against it."""
    swarm = Swarm(2, num_users, FakeNode(1, facts.spec(8), layer_s=0.001))
    for _ in range(round(600 / (UP_S + DOWN_S))):
        swarm.flap()
    assert 1 <= swarm.num_losses <= 3
    assert swarm.replays() <= 3 * num_users
    ended = [s for s in swarm.driver.items if swarm.driver.finish(s)]
    assert len(ended) > 10
    for session in ended:
        assert swarm.driver.failure(session) is None
        assert swarm.driver.tokens(session) == answer_to((5, 6, 7), NUM_TOKENS)
