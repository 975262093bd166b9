"""Where nodes are and how far apart: published round trips between regions, and each node's own access line.

Nobody tells the scheduler any of this: it sees only what its nodes measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

REGIONS = ("washington", "frankfurt", "tokyo", "sao-paulo", "dallas", "sydney", "london", "toronto")
"""A scenario with n regions has the first n. London is near Frankfurt, Toronto near Washington, as in life."""
UTC_OFFSET_H = (-5, 1, 9, -3, -6, 10, 0, -5)

RTT_MS = (
    (0, 91, 164, 118, 31, 214, 75, 19),
    (91, 0, 233, 198, 123, 250, 13, 93),
    (166, 233, 0, 284, 143, 115, 244, 162),
    (119, 196, 283, 0, 144, 328, 187, 128),
    (31, 123, 143, 146, 0, 186, 113, 34),
    (214, 249, 115, 328, 186, 0, 261, 214),
    (75, 13, 243, 188, 113, 261, 0, 83),
    (19, 93, 162, 129, 34, 215, 82, 0),
)
"""Milliseconds. IBM Cloud, inter-region latency of 27 July to 25 August 2024 (docs "Network latency dashboards")."""
INNER_RTT_S = 0.004
"""Within a region, without the access lines: the same page's latencies between zones are 1 to 2.5 ms; add the metro."""

Access = Literal["lan", "datacentre", "fibre", "home", "mixed"]


@dataclass(frozen=True, slots=True)
class Line:
    """An access line: one-way delay to the region's centre (range, s), and rates (range, bits per second)."""

    delay_s: tuple[float, float]
    up_bits_per_s: tuple[float, float]
    down_bits_per_s: tuple[float, float]


LINES: dict[str, Line] = {
    "lan": Line((50e-6, 150e-6), (940e6, 940e6), (940e6, 940e6)),
    "datacentre": Line((100e-6, 500e-6), (1e9, 10e9), (1e9, 10e9)),
    # Last mile of fibre 2 to 5 ms, of cable and DSL 10 to 25 ms round trip (FCC, Measuring Broadband America).
    "fibre": Line((1e-3, 3e-3), (100e6, 500e6), (200e6, 1e9)),
    "home": Line((4e-3, 12e-3), (10e6, 50e6), (50e6, 300e6)),
}
FIBRE_SHARE = 0.35
"""Of "mixed" nodes; the others are "home"."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one node is. `access_s` is one way; rates in bytes per second."""

    region: int
    access_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float


def make_sites(num_nodes: int, num_regions: int, access: Access, rng: Generator) -> list[Site]:
    """Nodes in turn over the regions, in random order; each with a line of its own."""
    regions = rng.permutation(np.arange(num_nodes) % num_regions)
    return [_site(int(region), access, rng) for region in regions]


def delay_s(one: Site, other: Site, salt: int) -> float:
    """True one-way delay between two different nodes. Routes differ by up to 15 % (`salt`: of this pair)."""
    if one.access_s < 1e-3 > other.access_s and one.region == other.region:
        between = 0.0  # the same building
    else:
        between = INNER_RTT_S if one.region == other.region else _round_trip_s(one.region, other.region)
    detour = 1.0 + 0.15 * (salt % 1024) / 1024
    return between / 2 * detour + one.access_s + other.access_s


def pool_delay_s(site: Site) -> float:
    """True one-way delay to the coordinator, which stands in the first region's centre."""
    between = INNER_RTT_S / 2 if site.region == 0 else _round_trip_s(0, site.region)
    return between / 2 + site.access_s


def _round_trip_s(one: int, other: int) -> float:
    return (RTT_MS[one][other] + RTT_MS[other][one]) / 2000


def _site(region: int, access: Access, rng: Generator) -> Site:
    name = access if access != "mixed" else ("fibre" if rng.random() < FIBRE_SHARE else "home")
    line = LINES[name]
    delay = float(rng.uniform(*line.delay_s))
    up, down = float(rng.uniform(*line.up_bits_per_s)), float(rng.uniform(*line.down_bits_per_s))
    return Site(region, delay, up / 8, max(up, down) / 8)
