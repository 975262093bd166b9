"""The nodes' side: they join, measure, download, load, report, leave and crash. Truths stay here; news has noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.cost import MIN_KV_TOKENS, model_cost
from coordinator.scheduler.links import LinkSeen
from coordinator.scheduler.state import DeviceKey
from coordinator.simulate import world
from coordinator.simulate.churn import Fate, Turn
from coordinator.simulate.geography import Site
from coordinator.simulate.hardware import CLASSES, VARIANT, DeviceClass, device_spec, measured, true_speed
from coordinator.simulate.models import MODELS, SimModel
from coordinator.simulate.outcome import Record
from coordinator.simulate.scenario import Scenario
from coordinator.simulate.timeline import Timeline
from coordinator.simulate.world import SimDevice, SimNode, SimSession
from protocol.values import MEMORY_FOR_ACTIVATIONS, LayerRange, NodeId

PROBE_ROUND_TRIPS = 3
PROBE_S = 0.2
"""What a node's measurement of its links takes beside the round trips."""
PIECE_S = 5.0
"""Downloads look at the mirror's load so often."""
RATE_NOISE = 0.1
"""Standard deviation, relative, of a measured bandwidth."""
EMBEDDING, HEAD = -1, -2
"""Stand for the ends' own parts beside layer numbers."""

Broken = Callable[[SimSession], None]
"""What becomes of a session whose chain is gone, or hangs."""


@dataclass(slots=True)
class Fetch:
    """A device gets what its slice lacks. `parts`: layers and their bytes, the next one last."""

    device: SimDevice
    generation: int
    num_stays: int
    parts: list[tuple[int, float]]
    cause: str

    @property
    def is_wanted(self) -> bool:
        node = self.device.node
        return node.is_up and node.num_stays == self.num_stays and self.device.generation == self.generation


class Fleet:
    """`is_instant`: measuring and loading take no time and move no bytes, to build a pool that has long been there."""

    def __init__(self, scenario: Scenario, timeline: Timeline, record: Record, rng: Generator) -> None:
        self.is_instant = False
        self.nodes: list[SimNode] = []
        self.devices: dict[DeviceKey, SimDevice] = {}
        self.by_id: dict[str, SimNode] = {}
        self.models: dict[str, SimModel] = {
            MODELS[served.name].facts.manifest_hash: MODELS[served.name] for served in scenario.models
        }
        self.on_hang: Broken = _ignore
        self.on_part: Broken = _ignore
        self.on_break: Broken = _ignore
        self._scenario = scenario
        self._timeline = timeline
        self._record = record
        self._rng = rng
        self._num_fetching = 0

    def build(self, sites: list[Site]) -> None:
        """Nodes at these sites, with devices drawn from the scenario's mix; nobody has joined yet."""
        names = list(self._scenario.pool.mix)
        shares = [self._scenario.pool.mix[name] for name in names]
        drawn = self._rng.choice(len(names), len(sites), p=[share / sum(shares) for share in shares])
        for number, (site, kind) in enumerate(zip(sites, drawn, strict=True)):
            self._add(number, site, CLASSES[names[int(kind)]])

    def _add(self, number: int, site: Site, kind: DeviceClass) -> None:
        node = SimNode(number, _node_id(number), site, up_bytes_per_s=site.up_bytes_per_s)
        spec = device_spec(kind)
        node.device = SimDevice(node, DeviceKey(NodeId(node.node_id), spec.device_id), spec)
        for digest, model in self.models.items():
            node.device.speeds[digest] = true_speed(kind, model, self._scenario.calibration)
        self.nodes.append(node)
        self.by_id[node.node_id] = node
        self.devices[node.device.key] = node.device

    @property
    def num_up(self) -> int:
        return sum(node.is_up for node in self.nodes)

    # ------------------------------------------------------------ coming and going

    def join(self, node: SimNode) -> None:
        """It connects. What ran over it before is lost, if the pool had not noticed yet that it was gone."""
        node.is_up = True
        node.num_stays += 1
        node.device.let_go()
        parted = self._part_sessions(node)
        self._timeline.tell(ev.NodeJoined(NodeId(node.node_id), (node.device.spec,)))
        self._resume_all(parted)
        rtt_s = 2 * node.pool_delay_s * self._jitter()
        self._timeline.tell(ev.LinksSeen((), ((NodeId(node.node_id), rtt_s),)))

    def meet(self, fate: Fate) -> None:
        """What churn and the scenario hold for a node."""
        node = self.nodes[fate.node]
        match fate.turn:
            case Turn.RETURN if not node.is_up:
                self.join(node)
            case Turn.LEAVE if node.is_up:
                self._go(node)
                self._lost(node, node.num_stays)
            case Turn.CRASH if node.is_up:
                self._go(node)
                for session in list(node.sessions.values()):
                    self.on_hang(session)
                self._timeline.after(self._scenario.lease_s, self._lost, node, node.num_stays)
            case Turn.SLOW:
                node.device.slowdown = fate.factor
                node.device.retime()
            case Turn.LINE:
                self._change_line(node, fate)
            case _:
                pass  # a mass leave or an outage meets a node that churn had taken already, or the reverse

    def _go(self, node: SimNode) -> None:
        node.is_up = False
        node.device.let_go()

    def _lost(self, node: SimNode, num_stays: int) -> None:
        """The pool notices, unless the node is back already."""
        if node.num_stays == num_stays:
            parted = self._part_sessions(node)
            self._timeline.tell(ev.NodeLeft(NodeId(node.node_id)))
            self._resume_all(parted)

    def _break_sessions(self, node: SimNode) -> None:
        self._resume_all(self._part_sessions(node))

    def _part_sessions(self, node: SimNode) -> list[SimSession]:
        """They leave all their devices, at once: as soon as the pool knows it gives their room to others."""
        sessions = list(node.sessions.values())
        for session in sessions:
            self.on_part(session)
        return sessions

    def _resume_all(self, sessions: list[SimSession]) -> None:
        for session in sessions:
            self.on_break(session)

    def _change_line(self, node: SimNode, fate: Fate) -> None:
        node.line_delay_s = fate.delay_s
        node.up_bytes_per_s = node.site.up_bytes_per_s * fate.factor
        for session in node.sessions.values():
            world.refresh_delay(session, self._scenario.calibration.hop_overhead_s)

    # ------------------------------------------------------------ orders

    def measure(self, command: cmd.Measure) -> None:
        device = self.devices[command.device]
        wait_s = 0.0 if self.is_instant else self._scenario.calibration.measure_s
        self._soon(wait_s, self._measured, device, command.manifest_hash, device.node.num_stays)

    def _measured(self, device: SimDevice, digest: str, num_stays: int) -> None:
        if device.node.is_up and device.node.num_stays == num_stays:
            speed = device.speeds[digest].slowed(device.slowdown)
            benchmark = measured(speed, self._scenario.calibration.speed_noise, self._rng)
            self._timeline.tell(ev.DeviceMeasured(device.key, digest, benchmark))

    def measure_links(self, command: cmd.MeasureLinks) -> None:
        node = self.by_id[command.node_id]
        targets = [self.by_id[target] for target in command.targets if target in self.by_id]
        farthest_s = max((world.link_delay_s(node, target) for target in targets), default=0.0)
        wait_s = 0.0 if self.is_instant else PROBE_S + PROBE_ROUND_TRIPS * 2 * farthest_s
        self._soon(wait_s, self._links_measured, node, targets)

    def _links_measured(self, node: SimNode, targets: list[SimNode]) -> None:
        if node.is_up:
            seen = tuple(self._see(node, target) for target in targets if target.is_up)
            self._timeline.tell(ev.LinksSeen(seen))

    def _see(self, node: SimNode, target: SimNode) -> LinkSeen:
        rate = world.link_bytes_per_s(node, target) * max(0.2, 1.0 + RATE_NOISE * float(self._rng.standard_normal()))
        rtt_s = 2 * world.link_delay_s(node, target) * self._jitter()
        return LinkSeen(NodeId(node.node_id), NodeId(target.node_id), rtt_s, rate)

    def assign(self, command: cmd.Assign, cause: str) -> None:
        """Whatever it held is gone; it fetches what is not on its disk, loads, and says so."""
        device = self.devices[command.device]
        if not device.node.is_up:
            return  # it crashed, and the pool does not know yet
        self._break_sessions(device.node)
        device.hold(command.generation, self.models[command.manifest_hash], command.layers)
        fetch = Fetch(device, command.generation, device.node.num_stays, self._lacking(device), cause)
        if self.is_instant:
            device.node.disk.setdefault(command.manifest_hash, set()).update(part for part, _ in fetch.parts)
            self._loaded(fetch)
        else:
            self._num_fetching += 1
            self._fetch(fetch, 0.0)

    def release(self, command: cmd.Release | cmd.GiveUp) -> None:
        device = self.devices[command.device]
        if device.node.is_up and device.generation == command.generation:
            device.let_go()
            self._break_sessions(device.node)

    # ------------------------------------------------------------ downloads

    def _lacking(self, device: SimDevice) -> list[tuple[int, float]]:
        assert device.model is not None, "it was just assigned"
        assert device.layers is not None, "it was just assigned"
        cost = model_cost(device.model.facts, VARIANT)
        stored = device.node.disk.get(device.model.facts.manifest_hash, set())
        layers = range(device.layers.start, device.layers.stop)
        parts: list[tuple[int, float]] = [(i, cost.weights[i + 1] - cost.weights[i]) for i in layers]
        if device.layers.start == 0:
            parts.append((EMBEDDING, cost.embedding_bytes))
        if device.layers.stop == cost.num_layers:
            parts.append((HEAD, cost.head_bytes))
        return [(part, num_bytes) for part, num_bytes in reversed(parts) if part not in stored]

    def _fetch(self, fetch: Fetch, num_bytes: float) -> None:
        """So many bytes more have come."""
        self._record.moved(fetch.cause, num_bytes)
        device = fetch.device
        while fetch.parts and num_bytes >= fetch.parts[-1][1] * (1 - 1e-9):
            part, size = fetch.parts.pop()
            num_bytes -= size
            if fetch.is_wanted and device.model is not None:
                device.node.disk.setdefault(device.model.facts.manifest_hash, set()).add(part)
        if not fetch.is_wanted:
            self._num_fetching -= 1
            return
        if not fetch.parts:
            self._num_fetching -= 1
            self._load(fetch)
            return
        if num_bytes > 0.0:
            part, size = fetch.parts[-1]
            fetch.parts[-1] = (part, size - num_bytes)
        mirror = self._scenario.pool.mirror_bits_per_s / 8 / max(1, self._num_fetching)
        rate = min(device.node.site.down_bytes_per_s, mirror)
        left = sum(size for _, size in fetch.parts)
        self._tell_progress(fetch, left)
        wait_s = min(PIECE_S, left / rate)
        self._timeline.after(wait_s, self._fetch, fetch, min(left, rate * wait_s))

    def _tell_progress(self, fetch: Fetch, left_bytes: float) -> None:
        assert fetch.device.model is not None, "it is wanted"
        assert fetch.device.layers is not None, "it is wanted"
        total = model_cost(fetch.device.model.facts, VARIANT).weight_bytes(fetch.device.layers)
        done = (int(total - left_bytes), int(total))
        self._timeline.tell(ev.SliceProgress(fetch.device.key, fetch.generation, False, *done))

    def _load(self, fetch: Fetch) -> None:
        assert fetch.device.model is not None, "it is wanted"
        assert fetch.device.layers is not None, "it is wanted"
        num_bytes = model_cost(fetch.device.model.facts, VARIANT).weight_bytes(fetch.device.layers)
        self._timeline.after(num_bytes / self._scenario.calibration.load_bytes_per_s, self._loaded, fetch)

    def _loaded(self, fetch: Fetch) -> None:
        device = fetch.device
        if not fetch.is_wanted or device.model is None or device.layers is None:
            return
        num_kv_tokens = kv_room(device.spec.memory_bytes, device.model, device.layers)
        if num_kv_tokens <= 0:  # the plan was wrong: it does not fit
            device.let_go()
            self._timeline.tell(ev.DeviceFailed(device.key, fetch.generation))
            return
        device.is_ready, device.num_kv_tokens = True, num_kv_tokens
        self._timeline.tell(ev.SliceReady(device.key, fetch.generation, num_kv_tokens))

    # ------------------------------------------------------------ reports

    def report(self) -> None:
        """Every busy device says what it has done since the last time."""
        for device in self.devices.values():
            if device.seen_steps >= 1.0 and device.is_ready:
                steps, rows, prompt = int(device.seen_steps), int(device.seen_rows), int(device.seen_prompt_tokens)
                news = ev.StepsSeen(device.key, device.generation, steps, rows, prompt, device.seen_s)
                device.seen_steps -= steps
                device.seen_rows -= rows
                device.seen_prompt_tokens -= prompt
                device.reported_s += device.seen_s
                device.seen_s = 0.0
                self._timeline.tell(news)
        self._timeline.after(self._scenario.report_s, self.report)

    def _soon(self, wait_s: float, call: Callable[..., None], *arguments: object) -> None:
        if wait_s:
            self._timeline.after(wait_s, call, *arguments)
        else:
            call(*arguments)

    def _jitter(self) -> float:
        return float(self._rng.lognormal(0.0, self._scenario.calibration.rtt_noise))


def kv_room(memory_bytes: int, model: SimModel, layers: LayerRange) -> int:
    """KV tokens that really fit beside the slice's weights; 0 or less if not even those do.

    Windowed layers are reckoned with at the length that slices must leave room for."""
    cost = model_cost(model.facts, VARIANT)
    num_tokens = min(MIN_KV_TOKENS, model.facts.context_length)
    left = memory_bytes * (1 - MEMORY_FOR_ACTIVATIONS) - cost.weight_bytes(layers)
    return int(left / (cost.kv_bytes(layers, num_tokens) / num_tokens))


def _node_id(number: int) -> str:
    """32 hex digits that say nothing about the number: whoever breaks ties by id must not learn regions from it."""
    return f"{(number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def _ignore(session: SimSession) -> None:
    raise AssertionError(f"nobody looks after {session.session_id}")
