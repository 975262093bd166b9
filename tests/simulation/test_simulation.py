"""Five hundred histories; `make simulate-faults` plays ten thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation.faults import MENU
from tests.simulation.model import DEADLY_TOKEN
from tests.simulation.simulation import Verdict, draw, simulate, simulate_plan

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 25
NUM_HISTORIES = 500

pytestmark = pytest.mark.allowed_logs("")


def told(verdict: Verdict) -> str:
    """What to do about it, and what led to it."""
    command = f"python -m tests.simulation --seed {verdict.seed}"
    return "\n".join([*verdict.wrong, f"tell it again: {command}", *verdict.lines[-60:]])


@pytest.mark.parametrize("first", range(0, NUM_HISTORIES, CHUNK))
def test_no_answer_is_lost_repeated_or_changed(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        verdict = simulate(seed)
        assert not verdict.wrong, told(verdict)
        counts += verdict.counts
    assert counts["ANSWERED"] > CHUNK, "most requests are answered"
    assert counts["epochs"] > counts["ANSWERED"], "many of them had to move"


def test_without_faults_everybody_is_answered_at_once() -> None:
    for seed in range(10):
        plan = draw(seed)
        verdict = simulate_plan(replace(plan, faults=(), has_probe=False, is_hasty=False))
        assert not verdict.wrong, told(verdict)
        fine = [user for user in plan.users if not user.is_poison]
        assert verdict.counts["ANSWERED"] + verdict.counts["LEFT"] == len(fine)
        assert verdict.counts["epochs"] - verdict.counts["breaks"] <= len(plan.users), "nobody moves"


@pytest.mark.parametrize("seeds", [range(20), range(20, 40), (121, 180)], ids=str)
def test_nobody_is_blamed_for_a_request_of_which_workers_die(seeds: Sequence[int]) -> None:
    """In the last two, workers are killed at moments at which somebody else was blamed once."""
    num_failed = 0
    for seed in seeds:
        plan = draw(seed)
        culprit = plan.users[seed % len(plan.users)]
        order = replace(culprit.order, prompt=(*culprit.order.prompt, DEADLY_TOKEN))
        users = tuple(replace(user, order=order) if user is culprit else user for user in plan.users)
        verdict = simulate_plan(replace(plan, users=users), with_lines=True)
        assert not verdict.wrong, told(verdict)
        num_failed += any("fails with failed_poison" in line for line in verdict.lines)
    assert num_failed > len(seeds) / 2


def test_every_fault_is_ordered_within_a_hundred_histories() -> None:
    assert {kind for seed in range(100) for _, kind in draw(seed).faults} == set(MENU)


def test_a_seed_tells_the_same_history_in_every_process() -> None:
    """Whatever order sets of strings happen to have there."""
    told = {_history_of(seed, hash_seed) for seed in (11,) for hash_seed in ("1", "2")}
    assert len(told) == 1


def _history_of(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) > 30
    return done.stdout
