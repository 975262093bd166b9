"""Distances are those that were published, plus every node's own line."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.simulate.geography import LINES, REGIONS, RTT_MS, Site, delay_s, make_sites, pool_delay_s


def site(region: int, access_s: float = 0.002) -> Site:
    return Site(region, access_s, 1e7, 1e8)


def test_the_table_is_square_and_nearly_symmetric() -> None:
    table = np.array(RTT_MS)
    assert table.shape == (len(REGIONS),) * 2
    assert np.all(np.abs(table - table.T) <= 3)
    assert np.all(np.diag(table) == 0)


def test_frankfurt_and_tokyo_are_233_ms_apart() -> None:
    assert delay_s(site(1), site(2), 0) == pytest.approx(0.233 / 2 + 0.004)


def test_a_delay_is_the_same_both_ways_and_a_detour_only_adds() -> None:
    near, far = delay_s(site(0), site(4), 0), delay_s(site(0), site(4), 1023)
    assert near < far < near * 1.2
    assert delay_s(site(0), site(4), 7) == delay_s(site(4), site(0), 7)


def test_nodes_of_one_office_are_a_fraction_of_a_millisecond_apart() -> None:
    assert delay_s(site(0, 1e-4), site(0, 1e-4), 500) == pytest.approx(2e-4)


def test_the_coordinator_is_near_the_first_region() -> None:
    assert pool_delay_s(site(0)) < 0.01 < pool_delay_s(site(2))


def test_sites_are_spread_over_the_regions_and_have_lines_of_their_kind() -> None:
    sites = make_sites(80, 4, "home", np.random.default_rng(0))
    assert sorted({s.region for s in sites}) == [0, 1, 2, 3]
    assert [sum(s.region == region for s in sites) for region in range(4)] == [20] * 4
    low, high = LINES["home"].up_bits_per_s
    assert all(low / 8 <= s.up_bytes_per_s <= high / 8 <= s.down_bytes_per_s for s in sites)


def test_mixed_pools_have_both_kinds_of_lines() -> None:
    rates = [s.up_bytes_per_s * 8 for s in make_sites(100, 1, "mixed", np.random.default_rng(0))]
    assert sum(rate > 50e6 for rate in rates) == pytest.approx(35, abs=15)
