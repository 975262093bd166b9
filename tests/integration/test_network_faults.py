"""Nodes on machines of their own in an emulated network: a cable is cut, a worker dies over a bad line. Answers stay
what they were. All faults, moments and links, with times: benchmarks/recovery."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.network import Link, Network, Topology, why_not
from benchmarks.recovery.faults import Fault
from benchmarks.recovery.pools import POOL, Rig, rig_in
from benchmarks.recovery.trials import Known, Moment, learn, trial

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

NAMES = ("one", "two", "three", "four")
NUM_TOKENS = 40
FAR = Link(delay_s=0.040, loss=0.01)
SEED = 1


@pytest.fixture(scope="module")
def far_apart(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Known]]:
    """Four nodes of two layers each, two whole pipelines. The lines turn bad once all have their layers."""
    topology = Topology((POOL, *NAMES))
    with Network(topology, SEED) as network:
        scratch = tmp_path_factory.mktemp("far-apart")
        with rig_in(network, scratch, endless_folder, NAMES, "--max-layers", "2") as rig:
            known = learn(rig, "a long story " * 40, NUM_TOKENS)
            for first, second in topology.pairs():
                network.set_link(first, second, FAR, both=False)
            yield rig, known


@pytest.mark.parametrize(
    ("fault", "moment"),
    [(Fault.CABLE, Moment.DECODE), (Fault.PAIR, Moment.DECODE), (Fault.KILL_WORKER, Moment.PREFILL)],
)
def test_the_answer_goes_on_unchanged_over_bad_lines(
    far_apart: tuple[Rig, Known], fault: Fault, moment: Moment
) -> None:
    rig, known = far_apart
    done = trial(rig, known, fault, moment, random.Random(SEED))
    assert done.heard.tokens == list(known.answer)
    assert done.heard.error == ""
    assert done.found is not None, "the answer moved to another chain"
