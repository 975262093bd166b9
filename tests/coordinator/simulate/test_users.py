"""Requests arrive, wait, run, break and end; each exactly once."""

from __future__ import annotations

import pytest

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.simulate.churn import Fate, Turn
from coordinator.simulate.errors import ImpossibleCommand
from coordinator.simulate.scenario import Traffic
from protocol.values import LayerRange
from tests.coordinator.simulate import pools
from tests.coordinator.simulate.plain_scheduler import PlainScheduler


def test_a_user_who_is_refused_comes_back_three_times() -> None:
    outcome = pools.run(pools.scenario(rate=0.1), max_waiting=0)
    assert outcome.num_arrived > 5
    assert outcome.num_refused == outcome.num_arrived
    arrived = 4 * outcome.num_arrived
    assert outcome.num_scheduler_events > arrived


def test_waiting_counts_towards_the_first_token() -> None:
    """One device with room for few, and far more requests than it can take."""
    crowded = pools.run(pools.scenario(1, 12.0))
    quiet = pools.run(pools.scenario(1, 0.1))
    assert crowded.ttft_s.mean > 10 * quiet.ttft_s.mean
    assert crowded.tpot_s.mean < crowded.ttft_s.mean


def test_a_restarted_request_goes_on_where_it_was() -> None:
    """What the user has is part of the new prompt, and is never sent twice."""
    simulation = pools.simulation(pools.scenario(2, 1.0), max_layers=1000)
    simulation.found()
    users, timeline = simulation.users, simulation.timeline
    simulation.record.start_s = timeline.now_s
    users.expect(simulation._user_rng)
    timeline.run(timeline.now_s + 60.0, lambda: False)
    scheduler = timeline._scheduler
    assert isinstance(scheduler, PlainScheduler)
    node = next(n for n in simulation.fleet.nodes if n.sessions)
    running = list(node.sessions.values())
    done = {one.session_id: one.num_done for one in running}
    simulation.fleet.meet(Fate(0.0, node.number, Turn.LEAVE))
    assert not node.sessions
    for one in running:
        assert one.num_restarts == 1
        assert done[one.session_id] <= one.num_done < one.num_answer
        assert one.chain == () or one.chain[0].node is not node
    timeline.run(timeline.now_s + 1000.0, lambda: not users.live and not users.num_to_come)
    assert sum(a.num_tokens for a in simulation.record.answers) > 0
    assert simulation.record.num_arrived == len(simulation.record.answers)


def test_a_crashed_nodes_sessions_hang_until_the_pool_notices() -> None:
    simulation = pools.simulation(pools.scenario(2, 1.0))
    simulation.found()
    users, timeline = simulation.users, simulation.timeline
    users.expect(simulation._user_rng)
    timeline.run(timeline.now_s + 60.0, lambda: False)
    node = next(n for n in simulation.fleet.nodes if n.sessions)
    one = next(iter(node.sessions.values()))
    simulation.fleet.meet(Fate(0.0, node.number, Turn.CRASH))
    before = one.num_done
    timeline.run(timeline.now_s + 4.4, lambda: False)
    assert (one.num_done, one.num_restarts) == (before, 0)
    timeline.run(timeline.now_s + 30.0, lambda: False)
    assert one.num_restarts == 1
    assert one.num_done > before


class Cheat(PlainScheduler):
    """Starts chains that cannot be, as `twist` has it."""

    twist = "hole"

    def _serve(self) -> list[cmd.Command]:
        commands = super()._serve()
        return [self._twisted(c) if isinstance(c, cmd.StartChain) else c for c in commands]

    def _twisted(self, start: cmd.StartChain) -> cmd.StartChain:
        head, *others = start.chain
        match self.twist:
            case "hole":
                others = others[1:]
            case "short":
                others = others[:-1]
            case "generation":
                head = cmd.ChainStage(head.device, head.generation + 1, head.layers)
            case "part":
                head = cmd.ChainStage(head.device, head.generation, LayerRange(0, head.layers.stop - 1))
                others = [cmd.ChainStage(head.device, head.generation, LayerRange(head.layers.stop, 32))]
        return cmd.StartChain(start.session_id, (head, *others))


@pytest.mark.parametrize(
    ("twist", "sentence"),
    [("hole", "comes next"), ("short", "ends at layer"), ("generation", "that holds"), ("part", "that holds")],
)
def test_a_chain_that_cannot_be_ends_the_simulation(twist: str, sentence: str) -> None:
    from coordinator.simulate.engine import Simulation

    cheat = Cheat(max_layers=8)
    cheat.twist = twist
    with pytest.raises(ImpossibleCommand, match=sentence):
        Simulation(pools.scenario(4), cheat).run()


def test_kv_room_cannot_be_promised_twice() -> None:
    with pytest.raises(ImpossibleCommand, match="KV tokens"):
        pools.run(pools.scenario(1, 20.0), overcommits=True)


def test_long_prompts_are_cut_to_the_models_context() -> None:
    small = pools.scenario(4, traffic=Traffic(0.2, lengths="arxiv-summary"))
    simulation = pools.simulation(small)
    simulation.run()
    scheduler = simulation.timeline._scheduler
    assert isinstance(scheduler, PlainScheduler)
    assert scheduler.started
    assert not any(isinstance(event, ev.RequestArrived) for event in scheduler.seen)
