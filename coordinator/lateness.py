"""Sessions whose answer is late: asks their stages where the rows are, and says whom to move away from. Pure.

Follows all sessions (`follow`), asks when a deadline is over (`look`), and decides when the answers are here (`heard`)
or do not come. Moving, blaming and telling are the core's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.deadlines import (
    LEAST_OPENING_S,
    LEAST_PROMPT_S,
    LEAST_S,
    LEAST_SILENT_S,
    NUM_TRIPS,
    SAFETY,
    Deadlines,
    Phase,
)
from coordinator.nodes import NodeView
from coordinator.scheduler.chain_times import ChainTimes
from coordinator.scheduler.cost import PREFILL_CHUNK_TOKENS
from coordinator.scheduler.state import DeviceKey
from coordinator.sessions import Session, SessionState
from coordinator.verdict import Cut, Hangs, HopReport, Silent, StageReport, Unknown, Verdict, Wait, judge
from protocol.messages import RowsAt, WhereAreRows
from protocol.values import NodeId, SessionId

REPLY_S = 0.3
"""For an agent to say where rows are; it asks nobody."""
EARLY_REPLY_S = 1.5
"""The same while nothing is late: a processor that computes a prompt may keep its agent waiting."""
DEFAULT_RTT_S = 0.1
NUM_REPLY_TRIPS = 4.0
PUT_OFF_S = 0.1
"""Who looks late at its watch has perhaps not read its mail: so much longer an answer may take then."""
MAX_ASKS = 4
"""After so many questions without anybody to blame the session is moved nevertheless."""
JUST_AFTER_S = 0.02

Times = Callable[[str, Sequence[DeviceKey]], ChainTimes]


@dataclass(frozen=True, slots=True)
class Late:
    """The session is to be moved, if possible away from `avoid`; `blamed` devices are to be trusted less. `cut`: rows
    do not get from the first node to the second. `reason` is for people."""

    session_id: SessionId
    reason: str
    avoid: frozenset[DeviceKey] = frozenset()
    blamed: frozenset[DeviceKey] = frozenset()
    cut: tuple[NodeId, NodeId] | None = None


@dataclass(slots=True)
class _Question:
    asked_s: float
    reply_by_s: float
    stages: frozenset[int]
    answers: dict[int, RowsAt] = field(default_factory=dict)
    is_put_off: bool = False

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == len(self.stages)


@dataclass(slots=True)
class _Case:
    """What is known of one session on its chain of now."""

    epoch: int
    state: SessionState
    num_tokens: int
    devices: tuple[DeviceKey, ...]
    num_prompt_rows: int = 0
    """Counted at each of the devices, as long as the prompt is computed."""
    question: _Question | None = None
    num_unknown: int = 0
    behind: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By stage: up to where rows had come in, and since when more had been sent."""


class Lateness:
    """`sessions` and `nodes` are the core's own; `times` is the scheduler's forecast of a chain."""

    def __init__(self, sessions: Mapping[SessionId, Session], nodes: Mapping[NodeId, NodeView], times: Times) -> None:
        self.deadlines = Deadlines()
        self.counts: Counter[str] = Counter()
        """Of verdicts, by what they said; "slow": of sessions that moved because their chain became slow."""
        self.troubles: dict[NodeId, Counter[str]] = {}
        """The same by node, of verdicts that name one; a cut counts at both ends, as nobody knows which it is."""
        self._sessions, self._nodes, self._times = sessions, nodes, times
        self._cases: dict[SessionId, _Case] = {}
        self._rows_on: Counter[DeviceKey] = Counter()
        """Rows of prompts that are being computed."""

    @property
    def next_s(self) -> float:
        return self.deadlines.next_s

    # ------------------------------------------------------------ following

    def follow(self, session: Session, now_s: float) -> None:
        """Something may have happened to it: opened, a token, moved, ended. Harmless if nothing has."""
        session_id = session.order.session_id
        case, has_chain = self._cases.get(session_id), session.is_current(session.epoch)
        if case is not None and (case.epoch != session.epoch or not has_chain):
            self._drop(session_id, case)
            case = None
        if session.state is SessionState.ENDED:
            self.deadlines.forget(session_id)
        elif has_chain and case is None:
            self._begin(session, now_s)
        elif case is not None and session.state is SessionState.RUNNING:
            self._go_on(session, case, now_s)

    def _begin(self, session: Session, now_s: float) -> None:
        session_id = session.order.session_id
        devices = tuple(stage.device for stage in session.chain)
        self._cases[session_id] = _Case(session.epoch, session.state, len(session.tokens), devices)
        self.deadlines.opens(session_id, self._chain_times(session), len(session.log), now_s)
        if session.state is SessionState.RUNNING:  # a second chain that runs already became its own
            self.deadlines.steps(session_id, now_s)

    def _go_on(self, session: Session, case: _Case, now_s: float) -> None:
        session_id, num_tokens = session.order.session_id, len(session.tokens)
        if case.state is SessionState.OPENING:
            case.state, case.num_prompt_rows = session.state, len(session.log)
            self._clear(case)
            num_ahead = max(self._rows_on[device] for device in case.devices)
            self._count_rows(case, case.num_prompt_rows)
            self.deadlines.runs(session_id, num_ahead, now_s)
        if num_tokens > case.num_tokens:
            self._count_rows(case, -case.num_prompt_rows)
            case.num_prompt_rows = 0
            self._clear(case)
            self.deadlines.answered(session_id, num_tokens - case.num_tokens, now_s)
            case.num_tokens = num_tokens

    def _clear(self, case: _Case) -> None:
        """It goes on: what was asked does not matter any more."""
        case.question, case.num_unknown = None, 0
        case.behind.clear()

    def _drop(self, session_id: SessionId, case: _Case) -> None:
        self._count_rows(case, -case.num_prompt_rows)
        self.deadlines.stops(session_id)
        del self._cases[session_id]

    def _count_rows(self, case: _Case, num_rows: int) -> None:
        for device in case.devices if num_rows else ():
            self._rows_on[device] += num_rows
            if not self._rows_on[device]:
                del self._rows_on[device]

    def forgive(self, lag_s: float) -> None:
        """The judge was away for so long: nobody is late by that."""
        self.deadlines.forgive(lag_s)
        for case in self._cases.values():
            case.behind = {stage: (num, since_s + lag_s) for stage, (num, since_s) in case.behind.items()}
            if case.question is not None:
                case.question.reply_by_s += lag_s

    # ------------------------------------------------------------ asking

    def look(self, now_s: float) -> list[tuple[NodeId, WhereAreRows] | Late]:
        """What is to be asked, and what is decided because no more answers will come."""
        found: list[tuple[NodeId, WhereAreRows] | Late] = []
        for session_id in self.deadlines.due(now_s):
            session, case = self._sessions[session_id], self._cases[session_id]
            if case.question is None:
                found += self._ask(session, case, now_s)
            if case.question is not None and (not case.question.stages or now_s >= case.question.reply_by_s):
                found += self._decide(session, case, now_s)
        return found

    def heard(self, node_id: NodeId, message: RowsAt, now_s: float) -> list[Late]:
        """An answer. It counts if it was asked for, of this node, about this epoch."""
        session_id = SessionId(message.session_id)
        session, case = self._sessions.get(session_id), self._cases.get(session_id)
        if session is None or case is None or session.device_at(node_id, message.epoch, message.stage) is None:
            return []
        question = case.question
        if question is None or message.epoch != case.epoch or message.stage not in question.stages:
            return []
        question.answers[message.stage] = message
        return self._decide(session, case, now_s) if question.is_answered else []

    def _ask(self, session: Session, case: _Case, now_s: float) -> list[tuple[NodeId, WhereAreRows]]:
        nodes = [device.node_id for device in case.devices]
        stages = [stage for stage, node_id in enumerate(nodes) if self._nodes[node_id].can_recover]
        least_s = EARLY_REPLY_S if self._is_early(session.order.session_id, now_s) else REPLY_S
        reply_s = max(least_s, NUM_REPLY_TRIPS * max((self._rtt_s(nodes[stage]) for stage in stages), default=0.0))
        case.question = _Question(now_s, now_s + reply_s, frozenset(stages))
        self.deadlines.allow(session.order.session_id, reply_s, now_s)
        asked = [(nodes[stage], WhereAreRows(session.order.session_id, case.epoch, stage)) for stage in stages]
        witness = self._witness(nodes) if len({node_id for node_id, _ in asked}) == 1 else None
        return asked if witness is None else [*asked, (witness, asked[0][1])]

    def _is_early(self, session_id: SessionId, now_s: float) -> bool:
        """Whether a prompt is asked about that is not late yet."""
        watch = self.deadlines.watch(session_id)
        return watch is not None and watch.phase is Phase.PROMPT and now_s < watch.prompt_by_s

    def _witness(self, nodes: Sequence[NodeId]) -> NodeId | None:
        """Whoever was heard last of those that have no part in the session: if it answers (that nothing is open there)
        and the one that was asked does not, it is not the coordinator's own line that is silent."""
        others = [n for n, view in self._nodes.items() if view.can_recover and n not in nodes]
        return max(others, key=lambda node_id: self._nodes[node_id].heard_at_s, default=None)

    def _rtt_s(self, node_id: NodeId) -> float:
        known_s = self._nodes[node_id].pool_rtt_s
        return DEFAULT_RTT_S / 2 if known_s is None else known_s

    # ------------------------------------------------------------ deciding

    def _decide(self, session: Session, case: _Case, now_s: float) -> list[Late]:
        question, session_id = case.question, session.order.session_id
        assert question is not None, "who decides has asked"
        is_overslept = now_s - question.reply_by_s > PUT_OFF_S and not question.is_put_off
        if not question.is_answered and is_overslept:
            question.is_put_off, question.reply_by_s = True, now_s + PUT_OFF_S
            self.deadlines.allow(session_id, PUT_OFF_S, now_s)
            return []
        verdict = judge(self._stages(session, case, question, now_s), self._hops(session, case, question, now_s))
        case.question = None
        self.counts[type(verdict).__name__.lower()] += 1
        return self._follow_up(session_id, case, verdict, now_s)

    def _follow_up(self, session_id: SessionId, case: _Case, verdict: Verdict, now_s: float) -> list[Late]:
        match verdict:
            case Wait(for_s):
                self.deadlines.allow(session_id, max(for_s, 0.0) + JUST_AFTER_S, now_s)
                return []
            case Unknown(suspects):
                return self._nobody(session_id, case, suspects, now_s)
            case Hangs(stage):
                self._count("hangs", {case.devices[stage].node_id})
                hung = frozenset({case.devices[stage]})
                return [Late(session_id, "a worker hangs", hung, hung)]
            case Silent(stages):
                silent = {case.devices[stage].node_id for stage in stages}
                self._count("silent", silent)
                gone = frozenset(device for device in case.devices if device.node_id in silent)
                return [Late(session_id, "a node does not answer", gone, gone)]
            case Cut(stage):
                receiver = case.devices[(stage + 1) % len(case.devices)]
                cut = (case.devices[stage].node_id, receiver.node_id)
                self._count("cut", set(cut))
                return [Late(session_id, "rows do not arrive", frozenset({receiver}), cut=cut)]

    def _count(self, what: str, node_ids: set[NodeId]) -> None:
        for node_id in node_ids:
            self.troubles.setdefault(node_id, Counter())[what] += 1

    def _nobody(self, session_id: SessionId, case: _Case, suspects: tuple[int, ...], now_s: float) -> list[Late]:
        left_s = self._left_s(session_id, case, suspects, now_s)
        if left_s > 0.0:
            self.deadlines.allow(session_id, left_s + JUST_AFTER_S, now_s)
            return []
        case.num_unknown += 1
        if case.num_unknown < MAX_ASKS:
            self.deadlines.allow(session_id, LEAST_S * self.deadlines.patience(session_id), now_s)
            return []
        return [Late(session_id, "nobody knows why", frozenset(case.devices[stage] for stage in suspects))]

    def _left_s(self, session_id: SessionId, case: _Case, suspects: tuple[int, ...], now_s: float) -> float:
        """What is left until a prompt is late, and of what those who cannot be asked may take, if they have had it all
        the time."""
        session, watch = self._sessions[session_id], self.deadlines.watch(session_id)
        if watch is None:
            return 0.0
        times = self._chain_times(session)
        allowed_s = sum(self._stage_limit_s(session, case, stage, times) for stage in suspects)
        prompt_by_s = watch.prompt_by_s if watch.phase is Phase.PROMPT else now_s
        return max(prompt_by_s, watch.since_s + allowed_s) - now_s

    def _stages(self, session: Session, case: _Case, question: _Question, now_s: float) -> list[StageReport]:
        times = self._chain_times(session)
        others_heard = any(view.heard_at_s > question.asked_s for view in self._nodes.values())
        reports = []
        for stage, device in enumerate(case.devices):
            is_asked = stage in question.stages
            is_heard = stage in question.answers or self._nodes[device.node_id].heard_at_s > question.asked_s
            waiting_s = self._waiting_s(session, case, stage, now_s)
            limit_s = self._stage_limit_s(session, case, stage, times)
            silent_s = self._silent_s(session, case, stage)
            if waiting_s and silent_s is not None:
                silence_limit_s = self._silence_limit_s(session, case, stage, times)
                late = (waiting_s, limit_s), (min(waiting_s, silent_s), silence_limit_s)
                waiting_s, limit_s = min(late, key=lambda each: each[1] - each[0])
            reports.append(StageReport(waiting_s, limit_s, is_asked, others_heard and not is_heard))
        return reports

    def _waiting_s(self, session: Session, case: _Case, stage: int, now_s: float) -> float | None:
        """While a session opens, what waits is the order to open: its answer is the worker's."""
        assert case.question is not None, "who decides has asked"
        answer, watch = case.question.answers.get(stage), self.deadlines.watch(session.order.session_id)
        if answer is None or watch is None:
            return None
        if watch.phase is not Phase.OPENING:
            return answer.waiting_s
        return 0.0 if stage in session.opened else now_s - watch.since_s

    def _silent_s(self, session: Session, case: _Case, stage: int) -> float | None:
        """Of the stage's worker, while the prompt is computed: it may be busy with others' for a long time, but not in
        silence."""
        assert case.question is not None, "who decides has asked"
        answer, watch = case.question.answers.get(stage), self.deadlines.watch(session.order.session_id)
        return answer.silent_s if answer is not None and watch is not None and watch.phase is Phase.PROMPT else None

    def _silence_limit_s(self, session: Session, case: _Case, stage: int, times: ChainTimes) -> float:
        """Several times its slowest step; before any is known, what is forecast of one."""
        device = case.devices[stage]
        learnt_s = self._nodes[device.node_id].devices[device.device_id].slowest_step_s(with_prompts=True)
        step_s = learnt_s or times.stages[stage].busy_s(PREFILL_CHUNK_TOKENS) * self.deadlines.prompt_bias
        return max(LEAST_SILENT_S, SAFETY * step_s) * self.deadlines.patience(session.order.session_id)

    def _stage_limit_s(self, session: Session, case: _Case, stage: int, times: ChainTimes) -> float:
        """What the device may take: several times its slowest step, with what of prompts comes before it."""
        device, num_rows = case.devices[stage], self._rows_on[case.devices[stage]]
        watch = self.deadlines.watch(session.order.session_id)
        is_step = watch is not None and watch.phase is Phase.STEP
        least_s = LEAST_S if is_step else LEAST_OPENING_S if case.state is SessionState.OPENING else LEAST_PROMPT_S
        rows_before = min(num_rows, PREFILL_CHUNK_TOKENS) if is_step else num_rows
        expected_s = times.stages[stage].busy_s(rows_before) * (self.deadlines.prompt_bias if rows_before else 1.0)
        view = self._nodes[device.node_id].devices[device.device_id]
        learnt_s = view.slowest_step_s(with_prompts=bool(num_rows) or not is_step)
        limit_s = max(least_s, SAFETY * max(expected_s, learnt_s))
        return limit_s * self.deadlines.patience(session.order.session_id)

    def _hops(self, session: Session, case: _Case, question: _Question, now_s: float) -> list[HopReport]:
        num_stages, times = len(case.devices), self._chain_times(session)
        reports = []
        for stage in range(num_stages if num_stages > 1 else 0):
            behind_s, num_rows = self._behind(case, question, stage, now_s)
            hop = times.hops[stage]
            num_ahead = self._rows_on[case.devices[(stage + 1) % num_stages]] if case.num_prompt_rows else 0
            carrying_s = max(min(num_rows, PREFILL_CHUNK_TOKENS), num_ahead) * hop.row_s
            limit_s = max(LEAST_S, NUM_TRIPS * 2 * hop.delay_s, SAFETY * carrying_s)
            reports.append(HopReport(behind_s, limit_s * self.deadlines.patience(session.order.session_id)))
        return reports

    def _behind(self, case: _Case, question: _Question, stage: int, now_s: float) -> tuple[float | None, int]:
        """For how long the next stage has missed what this one sent while nothing came in, and how many rows it is.

        The two did not answer at the same moment: one look says nothing, only that it stays so does."""
        following = (stage + 1) % len(case.devices)
        sender, receiver = question.answers.get(stage), question.answers.get(following)
        if sender is None or receiver is None or receiver.num_received >= sender.num_sent:
            case.behind.pop(following, None)
            return None, 0
        known = case.behind.get(following)
        if known is None or known[0] != receiver.num_received:
            known = case.behind[following] = (receiver.num_received, now_s)
        return now_s - known[1], sender.num_sent - receiver.num_received

    def _chain_times(self, session: Session) -> ChainTimes:
        return self._times(session.order.manifest_hash, [stage.device for stage in session.chain])

    # ------------------------------------------------------------ afterwards

    def stays(self, session_id: SessionId, now_s: float) -> None:
        """There is nowhere else for it."""
        self.deadlines.be_patient(session_id)
        self.deadlines.allow(session_id, LEAST_S * self.deadlines.patience(session_id), now_s)

    def moves(self, session_id: SessionId) -> None:
        """It is given another chain: should that be late as well, it is perhaps not the chain."""
        self.deadlines.be_patient(session_id)

    def gain_s(self, session: Session, tpot_s: float, num_tokens: float) -> float:
        """What the rest of an answer would take less on a chain of which that is forecast; its own chain, when it
        was not slow, tells how much forecasts are worth."""
        watch = self.deadlines.watch(session.order.session_id)
        recent_s = None if watch is None else watch.steps.recent_s()
        if watch is None or recent_s is None:
            return 0.0
        return num_tokens * (recent_s - tpot_s * watch.bias)

    def validate(self) -> None:
        """Re-derive the invariants; raises AssertionError."""
        chained = {s for s, session in self._sessions.items() if session.is_current(session.epoch)}
        assert set(self._cases) == chained, set(self._cases) ^ chained
        rows: Counter[DeviceKey] = Counter()
        for case in self._cases.values():
            rows.update(dict.fromkeys(set(case.devices), case.num_prompt_rows))
        assert +rows == self._rows_on, self._rows_on
