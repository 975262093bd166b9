"""What a chain is expected to take, stage by stage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.scheduler.chain_times import ChainTimes, HopTimes, StageTimes, chain_times
from coordinator.scheduler.links import LinkMap, LinkSeen
from tests.fakes import pool_facts as facts
from tests.fakes.chain_pool import ChainPool, key


def test_stages_take_what_was_measured_and_hops_what_the_links_do() -> None:
    links = LinkMap()
    links.see([LinkSeen(key(1).node_id, key(2).node_id, 0.08, 5e6)])
    pool = ChainPool(links=links, model=replace(facts.model(), hidden_size=16))  # type: ignore[arg-type]
    pool.hold(1, 0, 6, layer_s=0.01)
    pool.hold(2, 6, 8, layer_s=0.02)
    times = chain_times(pool.state, pool.model.manifest_hash, [key(1), key(2)])
    assert [stage.step_s for stage in times.stages] == pytest.approx([0.06, 0.04])
    assert [stage.prompt_row_s for stage in times.stages] == pytest.approx([0.006, 0.004])
    there, back = times.hops
    assert there.delay_s == pytest.approx(0.04)
    assert there.row_s == pytest.approx(4 * 16 / 5e6)
    assert back.delay_s == pytest.approx(links.delay_s(key(2).node_id, key(1).node_id))
    assert times.step_s == pytest.approx(0.1 + times.ring_s)


def test_what_live_work_has_shown_counts() -> None:
    pool = ChainPool()
    pool.hold(1, 0, 8, layer_s=0.01).slowdown = 5.0
    assert chain_times(pool.state, facts.DIGEST, [key(1)]).step_s == pytest.approx(0.4)


def test_a_step_has_the_rows_of_all_who_run_there() -> None:
    pool = ChainPool()
    device = pool.hold(1, 0, 8, layer_s=0.01, row_s=0.001)
    alone = chain_times(pool.state, facts.DIGEST, [key(1)]).step_s
    device.num_requests = 5
    assert chain_times(pool.state, facts.DIGEST, [key(1)]).step_s == pytest.approx(alone + 4 * 8 * 0.001)


def test_a_device_that_is_gone_has_no_times() -> None:
    with pytest.raises(KeyError):
        chain_times(ChainPool().state, facts.DIGEST, [key(1)])


def test_a_prompt_passes_in_chunks_and_others_rows_come_first() -> None:
    times = ChainTimes((StageTimes(0.1, 0.001), StageTimes(0.1, 0.002)), (HopTimes(0.05, 0.0), HopTimes(0.05, 0.0)))
    assert times.prompt_s(512) == pytest.approx(0.3 + 512 * 0.003)
    assert times.prompt_s(1024) == pytest.approx(0.3 + 512 * 0.003 + 512 * 0.002)
    assert times.stages[0].busy_s(0) == pytest.approx(0.1)
    assert times.stages[0].busy_s(1024) == pytest.approx(0.3 + 1.024)
