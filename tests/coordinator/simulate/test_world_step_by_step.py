"""The fluid simulation's time per token against a simulation of every single step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coordinator.scheduler.state import DeviceKey
from coordinator.simulate import world
from coordinator.simulate.geography import Site
from coordinator.simulate.hardware import CLASSES, device_spec
from coordinator.simulate.models import MODELS
from coordinator.simulate.world import SimDevice, SimNode, SimSession
from protocol.values import DeviceId, NodeId, SessionId
from tests.coordinator.simulate.step_by_step import mean_tpot_s

Stages = Sequence[tuple[float, float]]
Chains = Sequence[Sequence[int]]

EQUAL: Stages = [(0.02, 0.0005)] * 4
ALL = [0, 1, 2, 3]
CROSSED = [[0, 2], [0, 3], [1, 2], [1, 3]]
CASES: dict[str, tuple[Stages, float, Chains]] = {
    "one stage, one session": ([(0.01, 0.0005)], 0.0, [[0]]),
    "one stage, 16 sessions": ([(0.01, 0.0005)], 0.0, [[0]] * 16),
    "two stages of one office": ([(0.01, 0.0005)] * 2, 0.001, [[0, 1]] * 16),
    "three unequal stages": ([(0.03, 0.001), (0.01, 0.0005), (0.005, 0.0002)], 0.001, [[0, 1, 2]] * 16),
    "four stages, 4 sessions": (EQUAL, 0.03, [ALL] * 4),
    "four stages, 16 sessions": (EQUAL, 0.03, [ALL] * 16),
    "four stages, 64 sessions": (EQUAL, 0.03, [ALL] * 64),
    "crossed chains, 16 sessions": (EQUAL, 0.02, CROSSED * 4),
    "crossed chains, 64 sessions": (EQUAL, 0.02, CROSSED * 16),
    "eight stages far apart": ([(0.02, 0.0005)] * 8, 0.06, [list(range(8))] * 32),
}


def fluid_tpot_s(stages: Stages, hop_s: float, chains: Chains) -> float:
    """What the simulator's physics makes of the same."""
    devices = [_device(number, *times) for number, times in enumerate(stages)]
    sessions = [SimSession(SessionId(str(i)), MODELS["llama3-8b"], "", 1, 1, 1, 0.0) for i in range(len(chains))]
    for session, chain in zip(sessions, chains, strict=True):
        world.enter(session, tuple(devices[stage] for stage in chain), 0.0)
        session.delay_s = hop_s * len(session.hops)
    for _ in range(100):
        paces = [world.decode_segment(session, 16) for session in sessions]
    return sum(paces) / len(paces)


def _device(number: int, fixed_s: float, row_s: float) -> SimDevice:
    node = SimNode(number, str(number), Site(0, 0.0, 1e15, 1e15), up_bytes_per_s=1e15)
    key = DeviceKey(NodeId(str(number)), DeviceId("gpu:0"))
    return SimDevice(node, key, device_spec(CLASSES["rtx4090-24g"]), fixed_s=fixed_s, row_s=row_s)


@pytest.mark.parametrize("name", CASES)
def test_the_fluid_pace_is_near_that_of_single_steps(name: str) -> None:
    assert fluid_tpot_s(*CASES[name]) == pytest.approx(mean_tpot_s(*CASES[name]), rel=0.2)


def test_over_all_cases_the_mean_error_is_below_a_tenth() -> None:
    errors = [abs(fluid_tpot_s(*case) / mean_tpot_s(*case) - 1) for case in CASES.values()]
    assert sum(errors) / len(errors) < 0.1
