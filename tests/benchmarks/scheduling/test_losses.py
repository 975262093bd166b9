"""Half of a tiny pool leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.scheduling.baselines import POLICIES
from benchmarks.scheduling.losses import Loss, lose_many, losses_table, many_leave_scenarios
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.scheduler import Scheduler
from coordinator.simulate import engine
from coordinator.simulate.scenario import MassLeave, Outage, Pool, Scenario, ServedModel
from tests.coordinator.simulate import pools

HALF = MassLeave(60.0, within_s=20.0)


def four_cards(**changes: object) -> Scenario:
    return pools.scenario(4, 0.3, **{"happenings": (HALF,), "duration_s": 120.0, **changes})


@pytest.mark.parametrize("name", ["ours", "petals", "random"])
def test_what_is_left_goes_on_serving(name: str) -> None:
    loss = lose_many(four_cards(), None if name == "ours" else POLICIES[name](), seed=1)
    assert loss.num_finished + loss.num_failed + loss.num_refused == loss.num_arrived > 10
    assert loss.num_failed == 0
    assert loss.wrong == ""
    assert (loss.no_chain_s, loss.again_s) == (0.0, 0.0), "each of these cards holds the whole model"


def test_without_anybody_left_there_is_no_chain_until_the_end() -> None:
    all_leave = MassLeave(60.0, share=1.0, within_s=10.0, crash_share=0.0)
    loss = lose_many(four_cards(happenings=(all_leave,), duration_s=120.0, drain_s=30.0), None, seed=1)
    assert loss.no_chain_s > 50.0
    assert loss.again_s > 0.0
    assert loss.num_refused + loss.num_failed > 0


def test_when_the_last_chain_breaks_it_is_whole_again_after_a_download_of_what_was_missing() -> None:
    """Three of these cards hold the model, and no two of them."""
    pool, half = Pool(6, {"laptop-8g": 1.0}, access="fibre"), MassLeave(30.0, within_s=10.0, crash_share=0.0)
    small = pools.scenario(pool=pool, rate=0.05, models=(ServedModel("llama3-8b"),), happenings=(half,))
    loss = lose_many(small.lasting(300.0), None, seed=3)
    assert loss.moved > 0.0
    assert loss.download_s - small.tick_s <= loss.no_chain_s <= loss.download_s + half.within_s
    assert loss.least_s is not None
    assert loss.least_s - small.tick_s <= loss.no_chain_s
    assert (loss.num_failed, loss.wrong) == (0, "")


def test_an_outage_is_measured_from_its_beginning() -> None:
    pool = Pool(4, {"rtx4090-24g": 1.0}, num_regions=4, access="fibre")
    loss = lose_many(four_cards(pool=pool, happenings=(Outage(60.0, "tokyo", 60.0),)), None, seed=1)
    assert loss.num_finished == loss.num_arrived
    assert (loss.tokens_share > 0.0, loss.no_chain_s) == (True, 0.0)
    with pytest.raises(ValueError, match="nobody leaves"):
        lose_many(four_cards(happenings=()), None, seed=1)


class Liar(Scheduler):
    """Its chains have a hole."""

    def handle(self, event: ev.Event, now_s: float) -> list[cmd.Command]:
        return [self._spoilt(command) for command in super().handle(event, now_s)]

    def _spoilt(self, command: cmd.Command) -> cmd.Command:
        return replace(command, chain=command.chain[1:]) if isinstance(command, cmd.StartChain) else command


def test_what_is_served_wrongly_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_scheduler", lambda scenario, policy: Liar())
    loss = lose_many(four_cards(), None, seed=1)
    assert loss.wrong
    assert loss.wrong in losses_table([loss])


def test_the_scenarios_are_the_presets_and_small_pools_with_as_much_traffic_per_node() -> None:
    half, outage, *few = many_leave_scenarios()
    assert (half.name, outage.name) == ("half-leave", "outage")
    rate = half.traffic.requests_per_s / half.pool.num_nodes
    assert [s.traffic.requests_per_s / s.pool.num_nodes for s in few] == pytest.approx([rate] * len(few))


def test_the_table_has_a_line_for_each_run() -> None:
    loss = Loss("half-leave", "ours", 1, 10, 10, 0, 0, 2, 0.5, 0.0, 0.0, None, 0.0, 1.0, 5e9, "")
    lines: Sequence[str] = losses_table([loss, replace(loss, seed=2)]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
