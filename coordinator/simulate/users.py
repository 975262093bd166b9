"""The users' side: requests arrive, wait, run over their chains, break, come back, end."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.simulate import world
from coordinator.simulate.arrivals import arrival_times
from coordinator.simulate.errors import ImpossibleCommand
from coordinator.simulate.fleet import Fleet
from coordinator.simulate.lengths import LENGTHS
from coordinator.simulate.models import MODELS
from coordinator.simulate.outcome import Record
from coordinator.simulate.scenario import Scenario
from coordinator.simulate.timeline import Timeline
from coordinator.simulate.world import SimDevice, SimSession
from protocol.values import SessionId

SEGMENT_TOKENS = 16
"""So many tokens pass at one pace."""
PROMPT_PIECES = 4
LEAST_PIECE_TOKENS = 512
MAX_TRIES = 3
"""How often a user who is told to come back later does."""


class Users:
    """`live` are the requests that have arrived and not ended."""

    def __init__(self, scenario: Scenario, timeline: Timeline, fleet: Fleet, record: Record) -> None:
        self.live: dict[SessionId, SimSession] = {}
        self.num_to_come = 0
        self._scenario = scenario
        self._timeline = timeline
        self._fleet = fleet
        self._record = record
        self._overhead_s = scenario.calibration.hop_overhead_s

    @property
    def num_running(self) -> int:
        return sum(bool(session.chain) for session in self.live.values())

    def expect(self, rng: Generator) -> None:
        """Draw all requests, and write their arrivals down."""
        traffic, lengths = self._scenario.traffic, LENGTHS[self._scenario.traffic.lengths]
        duration_s, starts_at_h = self._scenario.duration_s, self._scenario.starts_at_h
        rate, burstiness = traffic.requests_per_s, traffic.burstiness
        times = arrival_times(traffic.arrivals, rate, burstiness, duration_s, rng, starts_at_h)
        num = len(times)
        prompts, answers = lengths.prompt.sample(num, rng), lengths.answer.sample(num, rng)
        shares = np.array([served.share for served in self._scenario.models])
        models = rng.choice(len(shares), num, p=shares / shares.sum())
        tenants = rng.integers(traffic.num_tenants, size=num)
        served = [MODELS[one.name] for one in self._scenario.models]
        start_s = self._timeline.now_s
        for number in range(num):
            model = served[int(models[number])]
            most = lengths.answer.most
            num_prompt = min(int(prompts[number]), model.facts.context_length - most)
            session = SimSession(
                session_id=SessionId(f"{number:032x}"),
                model=model,
                tenant=f"tenant-{int(tenants[number])}",
                num_prompt=num_prompt,
                num_answer=int(answers[number]),
                num_reserved=num_prompt + most,
                arrived_s=start_s + float(times[number]),
            )
            self._timeline.at(session.arrived_s, self._arrive, session)
        self.num_to_come = num

    def _arrive(self, session: SimSession) -> None:
        self.num_to_come -= 1
        self._record.num_arrived += 1
        if not self.live:
            self._record.nobody_waits(self._timeline.now_s)
        self.live[session.session_id] = session
        self._ask(session)

    def _ask(self, session: SimSession) -> None:
        event = ev.RequestArrived(
            session_id=session.session_id,
            manifest_hash=session.model.facts.manifest_hash,
            num_tokens=session.num_reserved,
            resumed=session.num_restarts > 0,
            num_prompt_tokens=session.num_prompt + session.num_done,
            tenant=session.tenant,
        )
        self._timeline.tell(event)

    # ------------------------------------------------------------ what the scheduler says

    def refuse(self, command: cmd.RefuseRequest) -> None:
        """Users who may come back do, a few times."""
        session = self.live[command.session_id]
        if session.num_restarts:
            self._record.num_failed += 1
            self._end(session)
        elif command.retry_after_s is not None and session.num_tries < MAX_TRIES:
            session.num_tries += 1
            self._timeline.after(command.retry_after_s, self._ask, session)
        else:
            self._record.num_refused += 1
            self._end(session)

    def start(self, command: cmd.StartChain) -> None:
        """Open the session on every stage, then send the prompt to the head."""
        session = self.live[command.session_id]
        if session.chain:
            raise ImpossibleCommand(f"Session {session.session_id} was started twice.")
        chain = tuple(self._fleet.devices[stage.device] for stage in command.chain)
        _check_chain(session, command, chain)
        world.enter(session, chain, self._overhead_s)
        session.epoch += 1
        session.segment_tokens = 0
        if all(device.node.is_up for device in chain):  # else it hangs until the pool notices
            opening_s = max(2 * device.node.pool_delay_s for device in chain) + chain[0].node.pool_delay_s
            num_tokens = session.num_prompt + session.num_done
            self._timeline.after(opening_s, self._prefill, session, session.epoch, num_tokens)

    # ------------------------------------------------------------ running

    def _prefill(self, session: SimSession, epoch: int, num_left: int) -> None:
        if session.epoch != epoch:
            return
        if num_left:
            piece = min(num_left, max(LEAST_PIECE_TOKENS, math.ceil(num_left / PROMPT_PIECES)))
            piece_s = world.prefill_segment(session, num_left, piece)
            self._timeline.after(piece_s, self._prefill, session, epoch, num_left - piece)
        else:
            world.stop_work(session)
            self._timeline.after(session.delay_s, self._first_token, session, epoch)

    def _first_token(self, session: SimSession, epoch: int) -> None:
        if session.epoch != epoch:
            return
        now_s = self._timeline.now_s
        if session.first_token_s is None:
            session.first_token_s = now_s + session.chain[-1].node.pool_delay_s
        self._got(session, 1, now_s)
        self._go_on(session)

    def _go_on(self, session: SimSession) -> None:
        """The next segment, or the end."""
        num_tokens = min(SEGMENT_TOKENS, session.num_answer - session.num_done)
        if num_tokens <= 0:
            self._finish(session)
            return
        session.segment_from_s, session.segment_tokens = self._timeline.now_s, num_tokens
        tpot_s = world.decode_segment(session, num_tokens)
        self._timeline.after(tpot_s * num_tokens, self._segment_over, session, session.epoch)

    def _segment_over(self, session: SimSession, epoch: int) -> None:
        if session.epoch != epoch:
            return
        self._got(session, session.segment_tokens, session.segment_from_s)
        self._go_on(session)

    def _got(self, session: SimSession, num_tokens: int, from_s: float) -> None:
        session.num_done += num_tokens
        self._record.tokens(num_tokens, from_s, self._timeline.now_s)

    def _finish(self, session: SimSession) -> None:
        done_s = self._timeline.now_s + session.chain[-1].node.pool_delay_s
        self._record.finished(session, done_s)
        self._end(session)
        self._timeline.tell(ev.RequestFinished(session.session_id, session.num_answer))

    def _end(self, session: SimSession) -> None:
        world.leave(session)
        session.epoch += 1
        del self.live[session.session_id]

    # ------------------------------------------------------------ breaking

    def hang(self, session: SimSession) -> None:
        """A node of its chain is dead, and nobody knows yet: nothing comes any more."""
        if session.tokens_per_s and session.segment_tokens:
            elapsed_s = self._timeline.now_s - session.segment_from_s
            num_tokens = min(session.segment_tokens - 1, int(elapsed_s * session.tokens_per_s))
            if num_tokens > 0:
                self._got(session, num_tokens, session.segment_from_s)
        session.segment_tokens = 0
        session.epoch += 1
        world.stop_work(session)

    def part(self, session: SimSession) -> None:
        """Its chain is gone."""
        self.hang(session)
        world.leave(session)

    def resume(self, session: SimSession) -> None:
        """Without a chain it asks for another, and replays what it has."""
        session.num_restarts += 1
        self._record.num_restarted += 1
        self._ask(session)


def _check_chain(session: SimSession, command: cmd.StartChain, chain: tuple[SimDevice, ...]) -> None:
    """A policy that breaks physics is not compared, it is stopped. Of a dead node the pool may not know yet."""
    next_layer = 0
    for stage, device in zip(command.chain, chain, strict=True):
        if stage.layers.start != next_layer:
            raise ImpossibleCommand(f"A chain has layers {stage.layers} where {next_layer} comes next.")
        next_layer = stage.layers.stop
        if not device.node.is_up:
            continue
        if not device.is_ready or device.generation != stage.generation or device.layers != stage.layers:
            raise ImpossibleCommand(f"A chain wants layers {stage.layers} of a device that holds {device.layers}.")
        if device.model is not session.model:
            raise ImpossibleCommand("A chain leads over a device that holds another model.")
        if device.num_reserved_tokens + session.num_reserved > device.num_kv_tokens:
            raise ImpossibleCommand(f"A device has {device.num_kv_tokens} KV tokens, and more were promised.")
    if next_layer != session.model.facts.num_layers:
        raise ImpossibleCommand(f"A chain ends at layer {next_layer}.")
