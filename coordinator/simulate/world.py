"""True physics: what nodes, devices, lines and sessions really do, whatever the scheduler believes.

A session is fluid: at the start of each segment its time per token follows from the true speeds and from what the
others on its chain do at that moment. Stage times are the cost model's (`cost.response_s`) with what only an observer
of single sessions can add: a row does not wait for itself (the arrival theorem, Reiser and Lavenberg 1980), a step
never has more rows than there are sessions, and a row that spends its whole cycle in one stage never finds that stage
in the middle of somebody else's step. An idle chain takes exactly the cost model's time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS, Speed, model_cost, prefill_s
from coordinator.scheduler.state import DeviceKey
from coordinator.simulate.geography import Site, delay_s, pool_delay_s
from coordinator.simulate.hardware import VARIANT
from coordinator.simulate.models import SimModel
from protocol.values import DeviceSpec, LayerRange, SessionId


@dataclass(slots=True, eq=False)
class SimNode:
    """A machine and its line. Rates in bytes per second; `load` is what rows of decode send up it, `prompt_load` what
    prompts do."""

    number: int
    node_id: str
    site: Site
    device: SimDevice = field(init=False)
    is_up: bool = False
    num_stays: int = 0
    """How often it came: news of an earlier stay is stale."""
    line_delay_s: float = 0.0
    up_bytes_per_s: float = 0.0
    load: float = 0.0
    prompt_load: float = 0.0
    num_users: int = 0
    num_prefills: int = 0
    sessions: dict[SessionId, SimSession] = field(default_factory=dict)
    disk: dict[str, set[int]] = field(default_factory=dict)
    """Per model the layers whose weights are here; -1 and -2 are embedding and head."""

    @property
    def pool_delay_s(self) -> float:
        return pool_delay_s(self.site) + self.line_delay_s


@dataclass(slots=True, eq=False)
class SimDevice:
    """A device, the slice that it holds, and what its sessions give it to do. Times are of the whole slice."""

    node: SimNode
    key: DeviceKey
    spec: DeviceSpec
    speeds: dict[str, Speed] = field(default_factory=dict)
    slowdown: float = 1.0
    generation: int = 0
    model: SimModel | None = None
    layers: LayerRange | None = None
    is_ready: bool = False
    num_kv_tokens: int = 0
    num_reserved_tokens: int = 0
    fixed_s: float = 0.0
    row_s: float = 0.0
    prompt_s: float = 0.0
    rows_per_s: float = 0.0
    num_rows: int = 0
    prompt_tokens_per_s: float = 0.0
    num_prefills: int = 0
    seen_steps: float = 0.0
    seen_rows: float = 0.0
    seen_prompt_tokens: float = 0.0
    seen_s: float = 0.0
    """What it has done since its last report."""
    reported_s: float = 0.0

    def hold(self, generation: int, model: SimModel, layers: LayerRange) -> None:
        """It begins to get these layers; it is ready when somebody says so."""
        self.generation, self.model, self.layers, self.is_ready = generation, model, layers, False
        self.num_kv_tokens = 0
        self.seen_steps = self.seen_rows = self.seen_prompt_tokens = 0.0
        self.retime()

    @property
    def busy_s(self) -> float:
        """In all, since somebody set it back."""
        return self.reported_s + self.seen_s

    def let_go(self) -> None:
        self.model = self.layers = None
        self.is_ready = False
        self.num_kv_tokens = 0

    def retime(self) -> None:
        """Its speed has changed, or what it holds."""
        if self.model is None or self.layers is None:
            return
        speed = self.speeds[self.model.facts.manifest_hash].slowed(self.slowdown)
        cost = model_cost(self.model.facts, VARIANT)
        work = cost.work_of(self.layers)
        is_last = self.layers.stop == cost.num_layers
        self.fixed_s = speed.step_time_s(work, 0, last=is_last)
        self.row_s = work * speed.row_s
        self.prompt_s = work * speed.prefill_s

    def step_s(self, others_per_s: float) -> float:
        """A step that one more row takes part in, while the others' rows come at this rate."""
        num_rows = self.num_rows if self.num_rows > 1 else 1
        most_s = self.fixed_s + num_rows * self.row_s
        if self.num_prefills:
            most_s += PREFILL_CHUNK_TOKENS * self.prompt_s
        slack = 1.0 - self.prompt_tokens_per_s * self.prompt_s - others_per_s * self.row_s
        if slack <= 0.0:
            return most_s
        step_s = (self.fixed_s + self.row_s) / slack
        return step_s if step_s < most_s else most_s

    def chunk_share(self) -> float:
        """What is left of the device for prompts beside decode rows: with each chunk ride all rows, but once."""
        chunk_s = PREFILL_CHUNK_TOKENS * self.prompt_s
        least = chunk_s / (chunk_s + self.num_rows * self.row_s) if chunk_s else 1.0
        return max(1.0 - self.rows_per_s * self.row_s, least)

    def prompt_token_s(self, own_per_s: float) -> float:
        """A prompt token's time here: prompts share evenly what decode leaves, and take what others cannot use."""
        share = self.chunk_share()
        others = max(0.0, self.prompt_tokens_per_s - own_per_s) * self.prompt_s
        return self.prompt_s / max(share / max(1, self.num_prefills), share - others)


@dataclass(slots=True, eq=False)
class SimSession:
    """A request of a user, from arrival to end; and while it runs its chain and its part in everybody's load."""

    session_id: SessionId
    model: SimModel
    tenant: str
    num_prompt: int
    num_answer: int
    num_reserved: int
    arrived_s: float
    num_done: int = 0
    """Tokens that the user has."""
    num_tries: int = 0
    num_restarts: int = 0
    first_token_s: float | None = None
    epoch: int = 0
    """Counts whatever makes earlier plans for it void."""
    chain: tuple[SimDevice, ...] = ()
    hops: tuple[tuple[SimNode, SimNode], ...] = ()
    """All hops of a token's trip between different nodes; the last one, tail to head, carries only a token."""
    senders: tuple[SimNode, ...] = ()
    """Who sends rows up its line, once per hop."""
    delay_s: float = 0.0
    row_bytes: float = 0.0
    tokens_per_s: float = 0.0
    prompt_per_s: float = 0.0
    segment_from_s: float = 0.0
    segment_tokens: int = 0
    is_prefilling: bool = False


def link_delay_s(one: SimNode, other: SimNode) -> float:
    """True one-way delay now."""
    if one is other:
        return 0.0
    low, high = (one.number, other.number) if one.number < other.number else (other.number, one.number)
    salt = (low * 2_654_435_761 + high * 40_503) >> 7
    return delay_s(one.site, other.site, salt) + one.line_delay_s + other.line_delay_s


def link_bytes_per_s(one: SimNode, other: SimNode) -> float:
    """What one transfer alone gets from `one` to `other`."""
    return min(one.up_bytes_per_s, other.site.down_bytes_per_s)


# ---------------------------------------------------------------- on and off a chain


def enter(session: SimSession, chain: tuple[SimDevice, ...], hop_overhead_s: float) -> None:
    """The session reserves KV on these devices."""
    nodes = [device.node for device in chain]
    ring = list(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    session.chain = chain
    session.senders = tuple(one for one, other in ring[:-1] if one is not other)
    session.hops = tuple((one, other) for one, other in ring if one is not other)
    session.row_bytes = float(model_cost(session.model.facts, VARIANT).hidden_bytes)
    refresh_delay(session, hop_overhead_s)
    for device in chain:
        device.num_reserved_tokens += session.num_reserved
        device.node.sessions[session.session_id] = session
    for node in session.senders:
        node.num_users += 1


def leave(session: SimSession) -> None:
    """It gives everything back."""
    stop_work(session)
    for device in session.chain:
        device.num_reserved_tokens -= session.num_reserved
        device.node.sessions.pop(session.session_id, None)
    for node in session.senders:
        node.num_users -= 1
    session.chain = session.senders = ()
    session.hops = ()


def refresh_delay(session: SimSession, hop_overhead_s: float) -> None:
    """What one token's trip takes in delays: over all hops, the way back from tail to head included."""
    session.delay_s = sum(link_delay_s(one, other) + hop_overhead_s for one, other in session.hops)


def stop_work(session: SimSession) -> None:
    """Neither decode nor prefill: its load goes."""
    if session.is_prefilling:
        _change_prefill(session, 0.0)
        session.is_prefilling = False
        for device in session.chain:
            device.num_prefills -= 1
        for node in session.senders:
            node.num_prefills -= 1
    elif session.tokens_per_s:
        _change_decode(session, 0.0)
        for device in session.chain:
            device.num_rows -= 1
    for device in session.chain:  # sums of floats: what nobody uses is exactly idle
        if not device.num_rows:
            device.rows_per_s = 0.0
        if not device.num_prefills:
            device.prompt_tokens_per_s = 0.0
    for node in session.senders:
        if node.num_users <= 1:
            node.load = node.prompt_load = 0.0


# ---------------------------------------------------------------- decode


def decode_segment(session: SimSession, num_tokens: int) -> float:
    """Begin a segment of that many tokens; returns seconds per token, and books the load and the work done."""
    if not session.tokens_per_s:
        for device in session.chain:
            device.num_rows += 1
    own = session.tokens_per_s
    trip_s = session.delay_s + _sending_s(session, own)
    waits_s = waits_here = 0.0
    for device in session.chain:
        others = device.rows_per_s - own
        if others < 0.0:
            others = 0.0
        step_s = device.step_s(others)
        trip_s += step_s
        busy = others * step_s
        num_steps = num_tokens / (1.0 + busy)
        device.seen_rows += num_tokens
        device.seen_steps += num_steps
        device.seen_s += num_steps * device.fixed_s + num_tokens * device.row_s  # without the chunks between
        wait_s = 0.5 * step_s * (busy if busy < 1.0 else 1.0)
        waits_s += wait_s
        waits_here += wait_s * step_s
    tpot_s = trip_s + waits_s - waits_here / trip_s  # each wait times the share of the trip that is elsewhere
    _change_decode(session, 1.0 / tpot_s)
    return tpot_s


def _sending_s(session: SimSession, own_per_s: float) -> float:
    """A row's time on the uplinks: a share of what others leave, and at least a user's fair part."""
    total_s, num_bytes = 0.0, session.row_bytes
    own_bytes_per_s = own_per_s * num_bytes
    for node in session.senders:
        alone_s = num_bytes / node.up_bytes_per_s
        most_s = alone_s * node.num_users
        left = 1.0 - (node.load + node.prompt_load - own_bytes_per_s) / node.up_bytes_per_s
        if left >= 1.0:
            total_s += alone_s
        elif left * most_s > alone_s:
            total_s += alone_s / left
        else:
            total_s += most_s
    return total_s


def _change_decode(session: SimSession, tokens_per_s: float) -> None:
    change = tokens_per_s - session.tokens_per_s
    session.tokens_per_s = tokens_per_s
    for device in session.chain:
        device.rows_per_s += change
    change *= session.row_bytes
    for node in session.senders:
        node.load += change


# ---------------------------------------------------------------- prefill


def prefill_segment(session: SimSession, num_left: int, num_tokens: int) -> float:
    """Begin with the next `num_tokens` of a prompt of which `num_left` are to come; returns seconds for them.

    Prompts share a device's chunks and an uplink evenly; decode rows and other traffic come first."""
    if not session.is_prefilling:
        session.is_prefilling = True
        for device in session.chain:
            device.num_prefills += 1
        for node in session.senders:
            node.num_prefills += 1
    stages = [device.prompt_token_s(session.prompt_per_s) for device in session.chain]
    hops = [_prompt_hop_s(session, node) for node in session.senders]
    whole_s = prefill_s(stages, hops, num_left)
    _change_prefill(session, num_left / whole_s)
    for device in session.chain:
        device.seen_prompt_tokens += num_tokens
        device.seen_steps += num_tokens / PREFILL_CHUNK_TOKENS
        device.seen_s += num_tokens * device.prompt_s
    return whole_s * num_tokens / num_left


def _prompt_hop_s(session: SimSession, node: SimNode) -> float:
    """Seconds per prompt token on this uplink: as on a device."""
    rate = node.up_bytes_per_s
    share = max(1.0 - node.load / rate, 1.0 / max(1, node.num_users))
    others = max(0.0, node.prompt_load - session.prompt_per_s * session.row_bytes) / rate
    return session.row_bytes / (rate * max(share / max(1, node.num_prefills), share - others))


def _change_prefill(session: SimSession, tokens_per_s: float) -> None:
    change = tokens_per_s - session.prompt_per_s
    session.prompt_per_s = tokens_per_s
    for device in session.chain:
        device.prompt_tokens_per_s += change
    change *= session.row_bytes
    for node in session.senders:
        node.prompt_load += change
