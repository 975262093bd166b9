"""Small scenarios for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.simulate.engine import Simulation
from coordinator.simulate.hardware import Calibration
from coordinator.simulate.outcome import Outcome
from coordinator.simulate.scenario import Pool, Scenario, ServedModel, Traffic
from tests.coordinator.simulate.plain_scheduler import PlainScheduler

EXACT = Calibration(speed_noise=0.0, rtt_noise=0.0)


def scenario(num_nodes: int = 4, rate: float = 0.5, **changes: Any) -> Scenario:
    """RTX 4090s in one office with an 8B model in 4 bits, for three minutes."""
    small = Scenario(
        name="small",
        models=(ServedModel("llama3-8b-4bit"),),
        pool=Pool(num_nodes, {"rtx4090-24g": 1.0}, access="lan"),
        traffic=Traffic(rate),
        duration_s=180.0,
        warm_up_s=20.0,
        tick_s=2.0,
        calibration=EXACT,
    )
    return msgspec.structs.replace(small, **changes)


def simulation(small: Scenario, max_layers: int = 1000, seed: int = 1, **scheduler: Any) -> Simulation:
    return Simulation(small, PlainScheduler(max_layers=max_layers, **scheduler), "plain", seed)


def run(small: Scenario, max_layers: int = 1000, seed: int = 1, **scheduler: Any) -> Outcome:
    return simulation(small, max_layers, seed, **scheduler).run()


def num_ended(outcome: Outcome) -> int:
    return outcome.num_finished + outcome.num_refused + outcome.num_failed + outcome.num_unfinished
