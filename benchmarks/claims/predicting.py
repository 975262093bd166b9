"""The simulator's prediction of an emulated pool: the same nodes, links and requests, on simulated time.

The simulator draws its pools from classes of devices and places; here it is given each node and link as it is. Its
device variant is bfloat16, so a float32 model is told as one of twice as many elements: the bytes are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from unittest import mock

import msgspec
from numpy.random import Generator

from benchmarks.claims.scene import Ask, Scene
from coordinator.scheduler.cost import Speed, memory_for
from coordinator.scheduler.plan import Placement, Problem
from coordinator.scheduler.policy import Policy, SchedulerConfig
from coordinator.scheduler.scheduler import Scheduler, our_policy
from coordinator.scheduler.state import ModelFacts
from coordinator.simulate import world
from coordinator.simulate.engine import OURS, Simulation
from coordinator.simulate.geography import Site
from coordinator.simulate.hardware import CLASSES, Calibration
from coordinator.simulate.models import MODELS, SimModel
from coordinator.simulate.outcome import Outcome
from coordinator.simulate.scenario import Pool, Scenario, ServedModel, Traffic
from coordinator.simulate.world import SimNode, SimSession
from protocol.values import LayerRange, SessionId, Variant

FLOAT32_IN_BFLOAT16 = 2
UNLIMITED_BYTES_PER_S = 1e9
BITS = 8


@dataclass(frozen=True, slots=True)
class PlayedPool:
    """What was played. `speeds` by node name, as the nodes measured them, and `layers` that they held; `hop_s` is what
    each hop costs beside the network's delay, as found with one request alone."""

    scene: Scene
    facts: ModelFacts
    speeds: Mapping[str, Speed]
    layers: Mapping[str, LayerRange]
    hop_s: float
    asks: tuple[Ask, ...]
    duration_s: float
    warm_up_s: float


def predict(played: PlayedPool, policy: Policy | None, seed: int) -> Outcome:
    """What the simulator says of it. Raises ImpossibleCommand as the simulator does."""
    model = sim_model(played.facts)
    scenario = _scenario(played)
    with mock.patch.dict(MODELS, {played.facts.name: model}):
        simulation = PlayedSimulation(scenario, policy, seed, played)
        with simulation.real_links():
            return simulation.run()


class AsHeld:
    """An allocator that gives every device what its node held in the real pool: links are measured with noise, so that
    two pools of the same nodes need not be planned alike."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerRange] = {}
        """By node id."""

    def allocate(self, problem: Problem) -> list[Placement]:
        return [
            Placement(offer.key, self.layers[offer.key.node_id], "as in the real pool")
            for offer in problem.offers
            if offer.key.node_id in self.layers
        ]

    def adapt(self, problem: Problem) -> list[Placement]:
        held = {offer.key: offer.held for offer in problem.offers}
        return [placement for placement in self.allocate(problem) if held[placement.key] != placement.layers]


class PlayedSimulation(Simulation):
    """A simulation whose nodes, slices, links and requests are given rather than drawn."""

    def __init__(self, scenario: Scenario, policy: Policy | None, seed: int, played: PlayedPool) -> None:
        name = OURS if policy is None else policy.name
        held = AsHeld()
        routing = policy or our_policy(SchedulerConfig())
        as_held = replace(routing, allocator=held, replans=False)
        super().__init__(scenario, Scheduler(policy=as_held), name, seed)  # nobody has told it what will be asked
        self._played = played
        self._name_of = {}
        for node, role in zip(self.fleet.nodes, played.scene.nodes, strict=True):
            self._name_of[node.number] = role.name
            if role.name in played.layers:
                held.layers[node.node_id] = played.layers[role.name]
            self._become(node, role.name)
        self.users.expect = self._expect_played  # type: ignore[method-assign]

    @contextlib.contextmanager
    def real_links(self) -> Iterator[None]:
        """In the block, delays between nodes are the scene's."""
        topology = self._played.scene.topology

        def delay_s(one: SimNode, other: SimNode) -> float:
            if one is other:
                return 0.0
            link = topology.link(self._name_of[one.number], self._name_of[other.number])
            return link.delay_s + link.jitter_s / 2

        with mock.patch.object(world, "link_delay_s", delay_s):
            yield

    def _become(self, node: SimNode, name: str) -> None:
        role = next(role for role in self._played.scene.nodes if role.name == name)
        up = role.line.up_bits_per_s or UNLIMITED_BYTES_PER_S * BITS
        down = role.line.down_bits_per_s or UNLIMITED_BYTES_PER_S * BITS
        node.site = Site(0, 0.0, up / BITS, down / BITS)
        node.up_bytes_per_s = node.site.up_bytes_per_s
        memory_bytes = memory_for(self._played.facts, Variant.FLOAT32, role.max_layers)
        device = node.device
        device.spec = msgspec.structs.replace(device.spec, memory_bytes=memory_bytes, max_layers=role.max_layers)
        device.speeds[self._played.facts.manifest_hash] = self._played.speeds[name]

    def _expect_played(self, rng: Generator) -> None:
        """The requests of the real run, at its times."""
        model = MODELS[self._played.facts.name]
        start_s = self.timeline.now_s
        for number, ask in enumerate(self._played.asks):
            session = SimSession(
                session_id=SessionId(f"{number:032x}"),
                model=model,
                tenant="",
                num_prompt=ask.num_prompt_tokens,
                num_answer=ask.num_answer_tokens,
                num_reserved=ask.num_prompt_tokens + ask.num_answer_tokens,
                arrived_s=start_s + ask.at_s,
            )
            self.timeline.at(session.arrived_s, self.users._arrive, session)
        self.users.num_to_come = len(self._played.asks)


def sim_model(facts: ModelFacts) -> SimModel:
    """The same bytes in the simulator's variant."""
    twice = FLOAT32_IN_BFLOAT16
    layers = tuple(twice * numel for numel in facts.layer_numels)
    kv = facts.kv_numels or (facts.kv_numel_per_token,) * facts.num_layers
    told = replace(
        facts,
        layer_numels=layers,
        active_numels=tuple(twice * numel for numel in facts.active_numels) or layers,
        embedding_numel=twice * facts.embedding_numel,
        head_numel=twice * facts.head_numel,
        kv_numel_per_token=twice * facts.kv_numel_per_token,
        kv_numels=tuple(twice * numel for numel in kv),
        windows=facts.windows or (None,) * facts.num_layers,
        hidden_size=twice * facts.hidden_size,
    )
    return SimModel(told, (0,) * facts.num_layers)


def _scenario(played: PlayedPool) -> Scenario:
    """Nodes are drawn from some class, and then become what they are."""
    rate = len(played.asks) / played.duration_s
    return Scenario(
        name="as played",
        models=(ServedModel(played.facts.name),),
        pool=Pool(num_nodes=len(played.scene.nodes), mix={next(iter(CLASSES)): 1.0}),
        traffic=Traffic(requests_per_s=rate),
        duration_s=played.duration_s,
        warm_up_s=played.warm_up_s,
        calibration=Calibration(hop_overhead_s=played.hop_s, speed_noise=0.0, rtt_noise=0.02),
    )


def relative_error(predicted: float, seen: float) -> float:
    """Of a prediction; 0 where both are nothing."""
    return abs(predicted - seen) / seen if seen else float(predicted != 0.0)


def hop_overhead_s(tpots_s: Sequence[float], stage_s: float, delays_s: float, num_hops: int) -> float:
    """What a hop costs beside computing and the network's delay: from the time per token of requests alone."""
    return max(0.0, (sum(tpots_s) / len(tpots_s) - stage_s - delays_s) / max(1, num_hops))
