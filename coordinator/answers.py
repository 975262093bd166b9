"""Answers as their readers see them: what was delivered, who reads, and how long one waits for a reader to come back.

Pure: time is an argument, a reader is whatever takes an item. The hub carries out what follows (cancel, forget).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.answer_times import AnswerTimes
from coordinator.sessions import Deliver, Failed, Order, Queued, Rerouted
from coordinator.token_log import Accepted, Claim, Ended, Kept
from protocol.values import UNKNOWN_LOGPROB, FinishReason, SessionId, StepTiming, TokenLogprobs

NOT_KNOWN = TokenLogprobs(UNKNOWN_LOGPROB)
Item = Queued | Deliver | Rerouted


class Reader(Protocol):
    """Such as an asyncio.Queue."""

    def put_nowait(self, item: Item | Failed) -> None: ...


@dataclass(slots=True)
class KeptAnswer:
    """One answer. `until_s`: then it is cancelled, or forgotten if it has ended; None while somebody reads it."""

    accepted: Accepted
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of each token, if they are wanted."""
    timing: StepTiming = StepTiming()
    num_cached_tokens: int = 0
    """Of the prompt. A coordinator that was restarted does not know it any more."""
    finish: FinishReason | None = None
    failed: Failed | None = None
    news: Queued | Rerouted | None = None
    """What readers were told last that was no token."""
    readers: list[Reader] = field(default_factory=list)
    until_s: float | None = None
    is_restored: bool = False

    @property
    def order(self) -> Order:
        return self.accepted.order

    @property
    def claim(self) -> Claim:
        return self.accepted.claim

    @property
    def has_ended(self) -> bool:
        return self.finish is not None or self.failed is not None

    @property
    def is_kept(self) -> bool:
        """Whether it outlives its reader. A refusal does not: the same request may be taken a moment later, and must
        not be told for minutes what was true of the first one."""
        is_refused = self.failed is not None and not self.failed.started
        return (self.claim.is_resumable or self.is_restored) and not is_refused

    def take(self, item: Item | Failed) -> bool:
        """Note the item and pass it on. Whether the answer ends with it."""
        if self.has_ended:
            return False
        match item:
            case Deliver():
                item = self._with_logprobs(item)
                self.tokens += item.tokens
                self.logprobs += item.logprobs
                self.timing = _sum(self.timing, item.timing)
                self.num_cached_tokens += item.num_cached_tokens
                self.finish = item.finish_reason
            case Failed():
                self.failed = item
            case _:
                self.news = item
        for reader in self.readers:
            reader.put_nowait(item)
        return self.finish is not None or self.failed is not None

    def _with_logprobs(self, item: Deliver) -> Deliver:
        """One for each token. No log keeps them, and a node may have said none."""
        is_wanted = self.order.sampling.num_logprobs is not None
        if is_wanted == bool(item.logprobs):
            return item
        return replace(item, logprobs=(NOT_KNOWN,) * len(item.tokens) if is_wanted else ())

    def history(self) -> Iterable[Item | Failed]:
        """What a reader who comes now has to hear first."""
        if self.news is not None and not self.has_ended:
            yield self.news
        if self.tokens or self.finish is not None:
            news = len(self.order.prompt), tuple(self.tokens), self.finish, self.timing, self.num_cached_tokens
            yield Deliver(self.order.session_id, *news, tuple(self.logprobs))
        if self.failed is not None:
            yield self.failed


class AnswerBook:
    """All answers that run or are kept."""

    def __init__(self, times: AnswerTimes = AnswerTimes()) -> None:
        self._times = times
        self.answers: dict[SessionId, KeptAnswer] = {}
        self._by_id: dict[str, SessionId] = {}
        self._by_name: dict[tuple[str, str], list[KeptAnswer]] = {}
        """By tenant and its own name for the request, the oldest first; hardly ever more than one."""

    def put(self, answer: KeptAnswer) -> KeptAnswer:
        """A request came in, or comes back."""
        self.answers[answer.order.session_id] = answer
        if answer.claim.answer_id:
            self._by_id[answer.claim.answer_id] = answer.order.session_id
        if answer.claim.retry_key:
            self._by_name.setdefault(_name_of(answer), []).append(answer)
        return answer

    def restore(self, kept: Kept, now_s: float, wall_s: float) -> KeptAnswer:
        """An answer that a former coordinator worked on. It has ended if nothing is missing."""
        answer = self.put(KeptAnswer(kept.accepted, is_restored=True))
        answer.take(_recorded(kept))
        answer.finish = kept.ended.finish if kept.ended else _finish_of(answer)
        passed_s = max(0.0, wall_s - kept.ended.at_s) if kept.ended else 0.0
        left_s = self._times.retention_s - passed_s if answer.has_ended else self._times.unread_s
        answer.until_s = now_s + max(0.0, left_s)
        return answer

    # ------------------------------------------------------------ questions

    def find(self, answer_id: str, may_read: Callable[[KeptAnswer], bool]) -> KeptAnswer | None:
        """The answer of that id, for somebody who may read it."""
        session_id = self._by_id.get(answer_id)
        answer = self.answers.get(session_id) if session_id is not None else None
        return answer if answer is not None and may_read(answer) else None

    def repeated(self, tenant: str, retry_key: str) -> KeptAnswer | None:
        """The answer to a request that this tenant has made under this name."""
        return next(iter(self._by_name.get((tenant, retry_key), ())), None)

    def overdue(self, now_s: float) -> list[KeptAnswer]:
        """Those for whom nobody has come in time."""
        return [answer for answer in self.answers.values() if answer.until_s is not None and answer.until_s <= now_s]

    # ------------------------------------------------------------ what happens

    def take(self, session_id: SessionId, item: Item | Failed, now_s: float) -> KeptAnswer | None:
        """News of an answer. The answer, if that was its end."""
        answer = self.answers.get(session_id)
        if answer is None or not answer.take(item):
            return None
        self._keep_for_later(answer, now_s)
        return answer

    def attach(self, answer: KeptAnswer, reader: Reader) -> None:
        """Somebody reads it from its beginning: what was, and then what comes."""
        for item in answer.history():
            reader.put_nowait(item)
        answer.readers.append(reader)
        answer.until_s = None

    def detach(self, answer: KeptAnswer, reader: Reader, now_s: float) -> bool:
        """The reader is gone. Whether the answer is to end with it: nobody else reads, and nobody will come back."""
        answer.readers.remove(reader)
        if answer.readers or answer.order.session_id not in self.answers:
            return False
        if not answer.is_kept:
            return True
        self._keep_for_later(answer, now_s)
        return False

    def _keep_for_later(self, answer: KeptAnswer, now_s: float) -> None:
        if not answer.readers:
            times = self._times
            answer.until_s = now_s + (times.retention_s if answer.has_ended else times.grace_s)

    def drop(self, session_id: SessionId) -> None:
        """Nothing of it is kept."""
        answer = self.answers.pop(session_id, None)
        if answer is None:
            return
        self._by_id.pop(answer.claim.answer_id, None)
        if same := self._by_name.pop(_name_of(answer), []):
            same.remove(answer)
        if same:
            self._by_name[_name_of(answer)] = same


def _recorded(kept: Kept) -> Deliver:
    order = kept.accepted.order
    return Deliver(order.session_id, len(order.prompt), kept.tokens, None, StepTiming())


def _name_of(answer: KeptAnswer) -> tuple[str, str]:
    return answer.order.tenant, answer.claim.retry_key


def _finish_of(answer: KeptAnswer) -> FinishReason | None:
    """By the rules of the stage that samples: None if tokens are missing yet."""
    order, tokens = answer.order, answer.tokens
    if tokens and tokens[-1] in order.stop_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if len(tokens) >= order.max_new_tokens else None


def _sum(one: StepTiming, other: StepTiming) -> StepTiming:
    return StepTiming(one.compute_us + other.compute_us, one.codec_us + other.codec_us)


def ended(answer: KeptAnswer, wall_s: float) -> Ended:
    """For the log, of an answer that is complete."""
    assert answer.finish is not None, "a failed answer is forgotten, not kept"
    return Ended(answer.order.session_id, answer.finish, wall_s)
