"""A pool of ready devices with a router and a dispatcher, without planner and scheduler: for tests of phase 2."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.scheduler import commands as cmd
from coordinator.scheduler.cost import Workload
from coordinator.scheduler.dispatcher import Dispatcher
from coordinator.scheduler.policy import Router, RouteRequest, SchedulerConfig
from coordinator.scheduler.routing import ChainRouter
from coordinator.scheduler.state import Device, DeviceKey, DeviceState, ModelFacts, State, Waiting
from protocol.values import BatchTime, DeviceId, LayerBenchmark, LayerRange, NodeId, SessionId, Variant
from tests.fakes import pool_facts as facts
from tests.fakes.plane_links import PlaneLinks


@dataclass
class FixedWorkloads:
    """Every model has this one."""

    fixed: Workload = field(default_factory=Workload)

    def workload(self, manifest_hash: str) -> Workload:
        assert manifest_hash
        return self.fixed


def node(number: int) -> NodeId:
    """Any number of them, unlike facts.node_id."""
    return NodeId(f"{number:032x}")


def key(number: int) -> DeviceKey:
    return DeviceKey(node(number), facts.CPU)


def number_of(key: DeviceKey) -> int:
    return int(key.node_id, 16)


def benchmark(layer_s: float, row_s: float = 0.0, prefill_s: float | None = None) -> LayerBenchmark:
    times = (BatchTime(1, layer_s), BatchTime(8, layer_s + 7 * row_s))
    return LayerBenchmark(times, layer_s / 10 if prefill_s is None else prefill_s, 0.0)


@dataclass
class ChainPool:
    """Node n has one device, at one place with all others unless the test says otherwise."""

    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    model: ModelFacts = field(default_factory=facts.model)
    links: PlaneLinks = field(default_factory=PlaneLinks)
    workloads: FixedWorkloads = field(default_factory=FixedWorkloads)
    now_s: float = 0.0
    other_router: Router | None = None

    def __post_init__(self) -> None:
        self.state = State(links=self.links)
        self.state.models[self.model.manifest_hash] = self.model
        self.router = self.other_router or ChainRouter(self.state, self.config)
        self.dispatcher = Dispatcher(self.state, self.router, self.config, self.workloads)

    # ------------------------------------------------------------ devices

    def hold(
        self, number: int, start: int, stop: int, *, layer_s: float = 0.01, row_s: float = 0.0,
        room: int = 10_000, variant: Variant = Variant.FLOAT32, device_id: DeviceId = facts.CPU,
    ) -> Device:  # fmt: skip
        """The node's device is ready with these layers."""
        spec = facts.spec(device_id=device_id, variant=variant)
        device = Device(DeviceKey(node(number), device_id), spec, state=DeviceState.READY, generation=1)
        device.benchmarks[self.model.manifest_hash] = benchmark(layer_s, row_s)
        device.model, device.layers = self.model.manifest_hash, LayerRange(start, stop)
        device.num_kv_tokens = room
        self.state.devices[device.key] = device
        self.dispatcher.changed(device)
        return device

    def lose(self, number: int) -> None:
        for device in [d for d in self.state.devices.values() if d.key.node_id == node(number)]:
            self.dispatcher.drop_requests_on([device.key])
            del self.state.devices[device.key]
            self.dispatcher.gone(device)

    def device(self, number: int) -> Device:
        return self.state.devices[key(number)]

    # ------------------------------------------------------------ requests

    def arrive(
        self, number: int, num_tokens: int = 100, *, tenant: str = "", resumed: bool = False,
        avoid: frozenset[DeviceKey] = frozenset(), deadline_at_s: float | None = None, num_prompt: int = 0,
        affinity: tuple[int, ...] = (),
    ) -> list[cmd.Command]:  # fmt: skip
        waiting = Waiting(
            facts.session_id(number), self.model.manifest_hash, num_tokens, resumed, avoid, self.now_s + 120.0,
            num_prompt, tenant, affinity, deadline_at_s,
        )  # fmt: skip
        return self.checked(self.dispatcher.arrive(waiting, self.now_s))

    def finish(self, number: int) -> list[cmd.Command]:
        self.dispatcher.ended(facts.session_id(number), self.now_s)
        return self.checked(self.dispatcher.serve_waiting(self.now_s))

    def pass_time(self, seconds: float) -> list[cmd.Command]:
        self.now_s += seconds
        return self.checked(self.dispatcher.serve_waiting(self.now_s))

    def checked(self, commands: list[cmd.Command]) -> list[cmd.Command]:
        self.dispatcher.validate()
        return commands

    def ask(self, **changes: object) -> RouteRequest:
        values: dict[str, object] = {
            "session_id": SessionId("0" * 32), "manifest_hash": self.model.manifest_hash, "num_prompt_tokens": 10,
            "num_new_tokens": 10, "num_reserved_tokens": 20,
        }  # fmt: skip
        return RouteRequest(**{**values, **changes})  # type: ignore[arg-type]

    def route(self, **changes: object) -> list[int]:
        """The numbers of the nodes of the chain; empty if there is none."""
        found = self.router.route(self.ask(**changes), Variant.FLOAT32, self.now_s)
        return [] if found is None else [number_of(device.key) for device in found.devices]


def started(commands: list[cmd.Command]) -> list[int]:
    """The numbers of the requests that these commands start, in order."""
    return [int(command.session_id, 16) for command in commands if isinstance(command, cmd.StartChain)]


def chains(commands: list[cmd.Command]) -> list[list[int]]:
    found = [command for command in commands if isinstance(command, cmd.StartChain)]
    return [[number_of(stage.device) for stage in command.chain] for command in found]


def refused(commands: list[cmd.Command]) -> dict[int, str]:
    """Request number -> code."""
    return {int(c.session_id, 16): c.code for c in commands if isinstance(c, cmd.RefuseRequest)}
