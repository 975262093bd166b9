"""What is played: nodes of unequal speed and memory, where they are, and what users ask of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.network import Line, Link, Topology, regions
from client.pace import Pace
from coordinator.simulate.lengths import Lengths, Lognormal

POOL = "pool"
"""The machine of the coordinator and of the users."""
SHORT = Lengths(Lognormal(96, 0.8, 512, least=24), Lognormal(40, 0.6, 96, least=8))
"""Chats, cut to what two cores can play in minutes."""
LONG = Lengths(Lognormal(768, 0.5, 2048, least=256), Lognormal(24, 0.5, 64, least=8))
"""Prompts whose rows are what the links carry."""


@dataclass(frozen=True, slots=True)
class NodeRole:
    """A node: where, how fast (None: as the machine is) and with memory for how many layers."""

    name: str
    region: str
    max_layers: int
    pace: Pace | None = None
    line: Line = Line()


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `at_s` counts from the load's beginning."""

    at_s: float
    num_prompt_tokens: int
    num_answer_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals. Requests before `warm_up_s` are played and not counted."""

    requests_per_s: float
    duration_s: float
    warm_up_s: float = 5.0
    lengths: Lengths = SHORT

    def asks(self, seed: int) -> list[Ask]:
        """The same for the same seed; another rate has the same lengths in the same order."""
        gaps_rng, lengths_rng = np.random.default_rng(seed).spawn(2)
        most = int(self.requests_per_s * self.duration_s * 2) + 50
        times_s = np.cumsum(gaps_rng.exponential(1.0, most)) / self.requests_per_s
        prompts = self.lengths.prompt.sample(most, lengths_rng.spawn(1)[0])
        answers = self.lengths.answer.sample(most, lengths_rng.spawn(1)[0])
        rows = zip(times_s.tolist(), prompts.tolist(), answers.tolist(), strict=True)
        return [Ask(at_s, prompt, answer) for at_s, prompt, answer in rows if at_s < self.duration_s]


def burst(num: int, num_prompt_tokens: int, num_answer_tokens: int) -> list[Ask]:
    """All at once."""
    return [Ask(0.0, num_prompt_tokens, num_answer_tokens)] * num


@dataclass(frozen=True, slots=True)
class Scene:
    """`between`: one-way links of two regions. The pool is in `pool_region`."""

    nodes: tuple[NodeRole, ...]
    within: Link = Link(delay_s=0.001)
    between: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    pool_region: str = ""

    @property
    def topology(self) -> Topology:
        members: dict[str, list[str]] = {self.pool_region or self.nodes[0].region: [POOL]}
        for node in self.nodes:
            members.setdefault(node.region, []).append(node.name)
        return regions(members, self.within, self.between).with_lines({node.name: node.line for node in self.nodes})

    def with_lines(self, line: Line) -> Scene:
        """Every node with this line."""
        return replace(self, nodes=tuple(replace(node, line=line) for node in self.nodes))

    def only(self, names: Sequence[str]) -> Scene:
        return replace(self, nodes=tuple(node for node in self.nodes if node.name in names))


def megabits(up: float, down: float | None = None) -> Line:
    """A line in Mbit/s; downloads four times as fast as uploads unless given."""
    return Line(up_bits_per_s=up * 1e6, down_bits_per_s=(4 * up if down is None else down) * 1e6)


# ---------------------------------------------------------------- the scenes of the rows

FAST, USUAL, SLOW = Pace(2.0, 0.2, 0.1), Pace(4.0, 0.4, 0.2), Pace(8.0, 0.8, 0.4)
"""Milliseconds per layer. Ratios as of an RTX 4090, an RTX 4060 and an RTX 3050 by memory bandwidth (NVIDIA's data
sheets: 1008, 272 and 224 GB/s) are 1, 3.7 and 4.5; here 1, 2 and 4."""

UNEQUAL = Scene(
    nodes=(
        NodeRole("west-fast", "west", 6, FAST, megabits(50)),
        NodeRole("west-usual", "west", 4, USUAL, megabits(20)),
        NodeRole("west-slow", "west", 4, SLOW, megabits(10)),
        NodeRole("east-fast", "east", 6, FAST, megabits(20)),
        NodeRole("east-usual", "east", 6, USUAL, megabits(50)),
        NodeRole("east-slow", "east", 3, SLOW, megabits(10)),
        NodeRole("south-usual", "south", 5, USUAL, megabits(20)),
        NodeRole("south-slow", "south", 4, SLOW, megabits(20)),
    ),
    within=Link(delay_s=0.005, jitter_s=0.001),
    between={
        ("west", "east"): Link(delay_s=0.040, jitter_s=0.002),
        ("west", "south"): Link(delay_s=0.060, jitter_s=0.002),
        ("east", "south"): Link(delay_s=0.075, jitter_s=0.002),
    },
)
"""Eight volunteers in three regions. Delays as of US West to US East, to South America, and between those (published
round trips of cloud regions: about 70, 140 and 120 to 150 ms)."""


def equal(num_nodes: int, max_layers: int, pace: Pace = USUAL) -> Scene:
    """Nodes that differ in nothing, in one region."""
    names = [f"node{number}" for number in range(num_nodes)]
    roles = tuple(NodeRole(name, "here", max_layers, pace, megabits(50)) for name in names)
    return Scene(roles, within=Link(delay_s=0.005))
