"""Two real nodes in namespaces of their own serve real users over an emulated network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.claims.playing import climb, play_asks
from benchmarks.claims.policies import OURS
from benchmarks.claims.pool import EmulatedPool, emulated_pool
from benchmarks.claims.scene import Ask, Load, equal
from benchmarks.claims.tiny_model import make_tiny_model
from benchmarks.network import Link, why_not
from client.pace import Pace

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SEED = 1
STEP_MS = 3.0
NUM_LAYERS = 6
SCENE = equal(2, max_layers=3, pace=Pace(STEP_MS, 0.3, 0.1))
"""Each holds half of the model."""
LINKS_S = 1.0


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedPool]:
    scratch = tmp_path_factory.mktemp("claims")
    model = make_tiny_model(scratch / "model", num_hidden_layers=NUM_LAYERS)
    with emulated_pool(SCENE, model, OURS, scratch, SEED, LINKS_S) as pool:
        yield pool


def test_a_ladder_is_climbed_and_every_answer_is_whole(pool: EmulatedPool) -> None:
    ladder = climb(pool, OURS, [Load(1.0, 8.0, warm_up_s=0.0)], SEED)
    (step,) = ladder.steps
    assert step.summary.num_asked == step.summary.num_whole > 0
    assert step.num_errors == 0
    assert set(ladder.layers) == {node.name for node in SCENE.nodes}
    assert all(share > 0.0 for share in step.busy_share.values()), "nodes report their work"


def test_a_token_takes_at_least_the_nodes_pace_and_the_links_delay(pool: EmulatedPool) -> None:
    answers, _, _ = play_asks(pool, [Ask(0.0, 40, 12)])
    least_s = NUM_LAYERS * STEP_MS / 1000 + 2 * pool.scene.within.delay_s
    assert len(answers[0].nodes) == 2
    assert answers[0].tpot_s >= least_s


def test_a_slower_link_is_felt_by_users(pool: EmulatedPool) -> None:
    for source, target in pool.scene.topology.pairs():
        pool.network.set_link(source, target, Link(delay_s=0.1), both=False)
    answers, _, _ = play_asks(pool, [Ask(0.0, 40, 12)])
    assert answers[0].tpot_s >= 2 * 0.1


def test_rows_go_from_node_to_node_and_not_through_the_coordinator(pool: EmulatedPool) -> None:
    logs = [(pool.local.folder / f"{node.name}.log").read_text() for node in pool.scene.nodes]
    assert not [line for log in logs for line in log.splitlines() if "relay" in line]
