"""What an emulated network looks like: machines, the line of each, and the links between them.

Seconds, bytes, and bits per second for rates, as lines are sold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import msgspec

MEGABIT = 1e6
QUEUE_S = 0.1
"""How long a packet may wait for a line before it is dropped. Home routers keep more (Gettys and Nichols, Bufferbloat,
CACM 2012), those with fair queueing much less; a tenth of a second is TCP's old rule of one round trip."""


class Line(msgspec.Struct, frozen=True):
    """A machine's access line: everything it sends or gets passes over it. None: without limit."""

    up_bits_per_s: float | None = None
    down_bits_per_s: float | None = None
    queue_s: float = QUEUE_S
    is_cut: bool = False
    """Nothing gets in or out."""


class Link(msgspec.Struct, frozen=True):
    """The way from one machine to another, in one direction.

    A packet takes `delay_s` and up to `jitter_s` more, evenly distributed; packets do not overtake each other. `loss`
    is the share of packets that never arrive."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """Machines by name. Who has no line is without limit; pairs without a link of their own have `usual_link`."""

    machines: tuple[str, ...]
    lines: Mapping[str, Line] = field(default_factory=dict)
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    """By source and target."""
    usual_link: Link = Link()

    def line(self, machine: str) -> Line:
        return self.lines.get(machine, Line())

    def link(self, source: str, target: str) -> Link:
        return self.links.get((source, target), self.usual_link)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every ordered pair of different machines."""
        return ((source, target) for source, target in product(self.machines, repeat=2) if source != target)

    def with_lines(self, lines: Mapping[str, Line]) -> Topology:
        return replace(self, lines={**self.lines, **lines})


def regions(
    members: Mapping[str, Sequence[str]],
    within: Link,
    between: Mapping[tuple[str, str], Link],
) -> Topology:
    """Machines in regions: `within` one, and `between` two of them, the same in both directions.

    Raises KeyError for two regions without a link."""
    home = {machine: region for region, machines in members.items() for machine in machines}
    links = {}
    for source, target in product(home, repeat=2):
        pair = home[source], home[target]
        if source != target:
            links[source, target] = within if pair[0] == pair[1] else between.get(pair) or between[pair[::-1]]
    return Topology(tuple(home), links=links)
