"""Drives a Scheduler: every event is followed by validate(), and slices load when the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.scheduler import Scheduler
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.queue_forecast import QueuePlace
from coordinator.scheduler.state import DeviceKey, ModelFacts
from protocol.values import DeviceSpec
from tests.fakes import pool_facts as facts


@dataclass
class SchedulerDriver:
    """`tell` is one event. The rest are shorthands for what nodes and users do."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    now_s: float = 0.0
    num_kv_tokens: int = 10_000

    def tell(self, event: ev.Event) -> list[cmd.Command]:
        commands = self.scheduler.handle(event, self.now_s)
        self.scheduler.validate()
        return commands

    def add_model(self, model: ModelFacts | None = None) -> list[cmd.Command]:
        return self.tell(ev.ModelAdded(model or facts.model()))

    def join(self, number: int, *devices: DeviceSpec) -> list[cmd.Command]:
        return self.tell(ev.NodeJoined(facts.node_id(number), devices or (facts.spec(),)))

    def leave(self, number: int) -> list[cmd.Command]:
        return self.tell(ev.NodeLeft(facts.node_id(number)))

    def drain(self, number: int, on: bool = True) -> list[cmd.Command]:
        return self.tell(ev.NodeDraining(facts.node_id(number), on))

    def remove_model(self, digest: str = facts.DIGEST) -> list[cmd.Command]:
        return self.tell(ev.ModelRemoved(digest))

    def measured(self, device: DeviceKey, layer_s: float = 0.01, digest: str = facts.DIGEST) -> list[cmd.Command]:
        return self.tell(ev.DeviceMeasured(device, digest, facts.benchmark(layer_s)))

    def ready(self, command: cmd.Assign, num_kv_tokens: int | None = None) -> list[cmd.Command]:
        tokens = self.num_kv_tokens if num_kv_tokens is None else num_kv_tokens
        return self.tell(ev.SliceReady(command.device, command.generation, tokens))

    def request(self, number: int, num_tokens: int = 100, digest: str = facts.DIGEST) -> list[cmd.Command]:
        return self.tell(ev.RequestArrived(facts.session_id(number), digest, num_tokens))

    def finish(self, number: int) -> list[cmd.Command]:
        return self.tell(ev.RequestFinished(facts.session_id(number)))

    def place(self, number: int) -> QueuePlace | None:
        return self.scheduler.queue_places().get(facts.session_id(number))

    def pass_time(self, seconds: float) -> list[cmd.Command]:
        self.now_s += seconds
        return self.tell(ev.TimePassed())

    # ------------------------------------------------------------ several steps

    def serve(self, *max_layers: int, layer_s: float = 0.01) -> list[cmd.Assign]:
        """Nodes 1, 2, ... of these sizes join one after the other, measure and load what they are assigned."""
        assigned: list[cmd.Assign] = []
        for number, layers in enumerate(max_layers, start=1):
            self.join(number, facts.spec(layers))
            assigned += self.load(self.measured(facts.key(number), layer_s))
        return assigned

    def load(self, commands: list[cmd.Command]) -> list[cmd.Assign]:
        """Every slice assigned by these commands becomes ready, and whatever is assigned because of that."""
        assigned = [command for command in commands if isinstance(command, cmd.Assign)]
        for command in assigned:
            assigned += [more for more in self.ready(command) if isinstance(more, cmd.Assign)]
        return assigned

    def load_all(self, commands: list[cmd.Command]) -> list[cmd.Command]:
        """The same commands; what they assign is ready now."""
        self.load(commands)
        return commands

    def settle_down(self, commands: list[cmd.Command]) -> None:
        """Time passes and everything loads, until nothing changes any more."""
        for _ in range(100):
            self.load(commands)
            commands = self.pass_time(1)
            moved = any(isinstance(command, cmd.Assign | cmd.Release) for command in commands)
            if not moved and not self.scheduler.state.retiring:
                return
        raise AssertionError("the pool never comes to rest")


def layers_of(commands: Sequence[cmd.Command]) -> dict[int, tuple[int, int]]:
    """Node number -> assigned layers."""
    assigned = [command for command in commands if isinstance(command, cmd.Assign)]
    return {facts.number_of(c.device.node_id): bounds(c) for c in assigned}


def bounds(assign: cmd.Assign) -> tuple[int, int]:
    """The layer that comes first, and the one after the last."""
    return assign.layers.start, assign.layers.stop


def orders(commands: Sequence[cmd.Command]) -> list[cmd.Command]:
    """What changes devices or requests: all but the links that are to be measured."""
    return [command for command in commands if not isinstance(command, cmd.MeasureLinks)]


def refusal(commands: list[cmd.Command]) -> cmd.RefuseRequest:
    [command] = commands
    assert isinstance(command, cmd.RefuseRequest)
    return command


def chain(commands: list[cmd.Command]) -> list[int]:
    [command] = commands
    assert isinstance(command, cmd.StartChain)
    return [facts.number_of(stage.device.node_id) for stage in command.chain]
