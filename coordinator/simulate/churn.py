"""When nodes leave, crash and return: drawn before the simulation begins, so that every policy meets the same fate.

Volunteers: times of availability are Weibull with a shape below 1, that is, who has been here long stays long (Kondo,
Javadi, Iosup, Epema 2010, The Failure Trace Archive, SETI@home: 226,208 hosts; Javadi et al. 2011 find the same per
group of hosts). A pool that is looked at now consists of nodes in the middle of such times, so that the first one is
a residual life (length-biased). Absences end at a rate of their own, with the mean that gives the long-run
availability: hosts are on 81 % of the time and may be used 84 % of that (Anderson and Fedak 2006, section 4). Returns
follow the local time of day (Kondo, Andrzejak, Anderson 2008: availability is correlated by day and time zone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.random import Generator

from coordinator.simulate.geography import REGIONS, UTC_OFFSET_H, Site
from coordinator.simulate.scenario import Churn, Degrade, MassLeave, Outage, Scenario, SlowDown

HOUR_S = 3600.0
RETURN_PEAK_HOUR = 20.0
"""Home machines are switched on in the evening."""


class Turn(Enum):
    """What happens to a node."""

    LEAVE = auto()
    CRASH = auto()
    RETURN = auto()
    SLOW = auto()
    LINE = auto()


@dataclass(frozen=True, slots=True)
class Fate:
    """At `at_s` this happens to node number `node`. `factor` is of its speed or uplink, `delay_s` of its line."""

    at_s: float
    node: int
    turn: Turn
    factor: float = 1.0
    delay_s: float = 0.0


def fates(scenario: Scenario, sites: list[Site], rng: Generator) -> list[Fate]:
    """Everything that will happen, in order of time."""
    drawn: list[Fate] = []
    if scenario.churn is not None:
        for node, site in enumerate(sites):
            drawn += _volunteer(node, site, scenario, scenario.churn, rng)
    for happening in scenario.happenings:
        match happening:
            case Outage():
                drawn += _outage(happening, sites)
            case MassLeave():
                drawn += _mass_leave(happening, len(sites), rng)
            case SlowDown():
                drawn += _slow_down(happening, len(sites), rng)
            case Degrade():
                drawn += _degrade(happening, len(sites), rng)
    return sorted(drawn, key=lambda fate: (fate.at_s, fate.node))


def mean_on_s(churn: Churn) -> float:
    """Mean time of availability."""
    return churn.on_scale_h * HOUR_S * math.gamma(1.0 + 1.0 / churn.on_shape)


def _volunteer(node: int, site: Site, scenario: Scenario, churn: Churn, rng: Generator) -> list[Fate]:
    drawn: list[Fate] = []
    end_s = scenario.duration_s + scenario.drain_s
    start_h = scenario.starts_at_h + UTC_OFFSET_H[site.region]
    mean_off_s = mean_on_s(churn) * (1.0 - churn.availability) / churn.availability
    at_s = _residual_s(churn, rng)
    while at_s < end_s:
        drawn.append(Fate(at_s, node, Turn.CRASH if rng.random() < churn.crash_share else Turn.LEAVE))
        at_s = _return_s(at_s, mean_off_s, start_h, churn, rng)
        if at_s < end_s:
            drawn.append(Fate(at_s, node, Turn.RETURN))
        at_s += churn.on_scale_h * HOUR_S * float(rng.weibull(churn.on_shape))
    return drawn


def _residual_s(churn: Churn, rng: Generator) -> float:
    """What is left of a time of availability that one looks into: a uniform part of a length-biased one.

    Of a length-biased Weibull life x, (x / scale)^shape is gamma distributed with 1 + 1 / shape."""
    whole: float = churn.on_scale_h * HOUR_S * rng.gamma(1.0 + 1.0 / churn.on_shape) ** (1.0 / churn.on_shape)
    return whole * float(rng.random())


def _return_s(gone_s: float, mean_off_s: float, start_h: float, churn: Churn, rng: Generator) -> float:
    """The end of an absence whose chance to end swings with the local time of day (thinned from its highest rate)."""
    at_s = gone_s
    while True:
        at_s += float(rng.exponential(mean_off_s / (1.0 + churn.day_swing)))
        wave = math.cos(2 * math.pi * (start_h + at_s / HOUR_S - RETURN_PEAK_HOUR) / 24.0)
        if rng.random() * (1.0 + churn.day_swing) <= 1.0 + churn.day_swing * wave:
            return at_s


def _outage(happening: Outage, sites: list[Site]) -> list[Fate]:
    region = REGIONS.index(happening.region)
    nodes = [node for node, site in enumerate(sites) if site.region == region]
    gone = [Fate(happening.at_s, node, Turn.CRASH) for node in nodes]
    return gone + [Fate(happening.at_s + happening.length_s, node, Turn.RETURN) for node in nodes]


def _mass_leave(happening: MassLeave, num_nodes: int, rng: Generator) -> list[Fate]:
    nodes = _some(happening.share, num_nodes, rng)
    times = happening.at_s + rng.uniform(0.0, happening.within_s, len(nodes))
    crashes = rng.random(len(nodes)) < happening.crash_share
    turns = [Turn.CRASH if crash else Turn.LEAVE for crash in crashes]
    return [Fate(float(at_s), node, turn) for at_s, node, turn in zip(times, nodes, turns, strict=True)]


def _slow_down(happening: SlowDown, num_nodes: int, rng: Generator) -> list[Fate]:
    nodes, end_s = _some(happening.share, num_nodes, rng), happening.at_s + happening.length_s
    slow = [Fate(happening.at_s, node, Turn.SLOW, happening.factor) for node in nodes]
    return slow + [Fate(end_s, node, Turn.SLOW) for node in nodes]


def _degrade(happening: Degrade, num_nodes: int, rng: Generator) -> list[Fate]:
    nodes, end_s = _some(happening.share, num_nodes, rng), happening.at_s + happening.length_s
    worse = [Fate(happening.at_s, node, Turn.LINE, happening.rate_factor, happening.delay_s) for node in nodes]
    return worse + [Fate(end_s, node, Turn.LINE) for node in nodes]


def _some(share: float, num_nodes: int, rng: Generator) -> list[int]:
    return [int(node) for node in np.sort(rng.permutation(num_nodes)[: round(share * num_nodes)])]
