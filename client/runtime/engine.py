"""Serving a loaded slice: sessions and frames in, one forward per step for all of them, rows and tokens out."""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic, perf_counter_ns

import torch
from torch import Tensor

from client.ipc import MAX_SENT_BYTES, EndSession, NoMemory, Sampled, SessionFailed, SessionStarted, StartSession
from client.runtime.batch import BatchBudget, Shortage, StepLayout, lay_out, plan_step
from client.runtime.errors import (
    BadTokenError,
    ChannelClosedError,
    DeviceMemoryError,
    InternalError,
    NonFiniteError,
    SessionError,
    SliceReplacedError,
    WorkerError,
    WrongStageError,
    as_fault,
)
from client.runtime.logprobs import logprobs_of
from client.runtime.meter import WorkMeter
from client.runtime.outbox import LinkGroups, Outbox
from client.runtime.sampling import Draws, finish_reason
from client.runtime.send_log import SendLog
from client.runtime.sessions import Rows, Session, SessionBook
from client.runtime.shaping import Shaping, ShapingBook, is_shaped
from client.runtime.stage import Stage
from client.runtime.wire import WIRE_DTYPES, from_payload
from client.runtime.work import Step, Work, halves, is_untouched, num_rows_of
from protocol.errors import FrameError, FrameFault
from protocol.frames import Frame, FrameKind, Segment, WireDtype, decode_frame
from protocol.values import SessionId, StepTiming, TokenLogprobs

_logger = logging.getLogger(__name__)
NEW_TRIP = StepTiming()
ROWS_SENT_AGAIN = 512
"""In one frame: the next stage begins to compute while the others are on their way."""


class Engine:
    """All sessions of one stage. `num_dropped` counts segments that nobody waited for, by reason; `meter` the work."""

    def __init__(
        self, stage: Stage, outbox: Outbox, max_batch_tokens: int, max_sent_bytes: int = MAX_SENT_BYTES,
        *, runs_ahead: bool | None = None,
    ) -> None:  # fmt: skip
        """`runs_ahead`: of a whole model, the next step is given to the device before this one's tokens are here. None:
        where the device computes beside the processor."""
        self.num_dropped: Counter[FrameFault] = Counter()
        self.meter = WorkMeter()
        self.sessions = SessionBook(stage.cache, SendLog(max_sent_bytes))
        self._stage = stage
        self._outbox = outbox
        self._late: list[Sampled] = []
        can_run_ahead = stage.is_first and stage.is_last and stage.device.pace is None
        self._runs_ahead = can_run_ahead and (not stage.device.is_cpu if runs_ahead is None else runs_ahead)
        self._under_way: Step | None = None
        """Computed, or about to be; its tokens have not been read."""
        self._read_ns = 0
        """When tokens were read last."""
        self._shapings = ShapingBook(stage.vocab_size, stage.device.torch_device)
        self._budget = BatchBudget(max(1, max_batch_tokens))
        self._shortage = Shortage()

    @property
    def has_work(self) -> bool:
        return self.sessions.has_waiting or self._under_way is not None

    # ------------------------------------------------------------ sessions

    def start(self, message: StartSession) -> None:
        """Open a session and say so, or say why not."""
        try:
            _check_stage(message, self._stage)
            shaping = self._shaping(message)
            session = self.sessions.open(message)
        except (SessionError, DeviceMemoryError) as fault:
            self._outbox.send_message(_failed(message, fault))
        else:
            session.shaping = shaping
            self._outbox.send_message(SessionStarted(message.session_id, message.epoch, session.num_offered))

    def _shaping(self, message: StartSession) -> Shaping | None:
        """Raises BadTokenError or DeviceMemoryError."""
        if not self._stage.is_last or message.sampling is None or not is_shaped(message.sampling):
            return None
        try:
            return self._shapings.open(message.sampling, message.history)
        except torch.OutOfMemoryError as error:
            raise as_fault(error) from None

    def end(self, message: EndSession) -> None:
        """End a session; one that is not open is none to end."""
        self.sessions.end(message)

    def close(self) -> None:
        """End all sessions because this slice is replaced."""
        for session in self.sessions:
            self._fail(session, SliceReplacedError())

    def _fail(self, session: Session, fault: WorkerError) -> None:
        if self.sessions.close(session):  # a session fails once
            self._send_late()
            self._outbox.send_message(_failed(session.start, fault))

    # ------------------------------------------------------------ frames in

    def receive(self, data: bytes) -> None:
        """Take a data frame. What nobody here waits for is dropped and counted."""
        begin = perf_counter_ns()
        try:
            frame = decode_frame(data)
            self._check_format(frame)
        except FrameError as error:
            self._drop(error)
            return
        values = from_payload(frame)
        codec_us = _us_since(begin)
        for segment, rows in zip(
            frame.segments, torch.split(values, [s.num_tokens for s in frame.segments]), strict=True
        ):
            self._receive_segment(segment, rows, codec_us)

    def _check_format(self, frame: Frame) -> None:
        kind = FrameKind.TOKENS if self._stage.is_first else FrameKind.HIDDEN
        if frame.kind is not kind:
            raise FrameError(FrameFault.BAD_KIND, f"{frame.kind.name}, this stage takes {kind.name}")
        width = 1 if self._stage.is_first else self._stage.hidden_size
        if frame.row_width != width:
            raise FrameError(FrameFault.BAD_SHAPE, f"rows of {frame.row_width}, this stage takes {width}")
        dtype = WireDtype.INT32 if self._stage.is_first else WIRE_DTYPES[self._stage.dtype]
        if frame.dtype is not dtype:
            raise FrameError(FrameFault.BAD_DTYPE, f"{frame.dtype.name}, this stage takes {dtype.name}")

    def _receive_segment(self, segment: Segment, values: Tensor, codec_us: int) -> None:
        timing = StepTiming(segment.compute_us, segment.codec_us + codec_us)
        try:
            session = self.sessions.find(segment)
            self._push(session, Rows(segment.position, values, timing))
        except FrameError as error:
            self._drop(error)

    def _push(self, session: Session, rows: Rows) -> None:
        """Queue received rows, [n, row width]. Raises FrameError."""
        try:
            if self._stage.is_first:
                tokens = rows.values[:, 0].long()
                if int(tokens.min()) < 0 or int(tokens.max()) >= self._stage.vocab_size:
                    raise BadTokenError(self._stage.vocab_size)
                rows = Rows(rows.position, tokens, rows.timing)
        except SessionError as fault:
            self._fail(session, fault)
        else:
            self._push_own(session, rows)

    def _push_own(self, session: Session, rows: Rows) -> None:
        """Queue a token that was sampled here."""
        try:
            self.sessions.push(session, rows)
        except SessionError as fault:
            self._fail(session, fault)
        else:
            self._send_again(session)

    def _send_again(self, session: Session) -> None:
        """What the next stage lacks, once the first row of this epoch is here: before that, it may not be open yet."""
        if not session.sends_again:
            return
        session.sends_again = False
        start = session.start
        kept = self.sessions.sent.read(session.session_id, start.next_from, start.num_kept_tokens, ROWS_SENT_AGAIN)
        for position, values in kept:
            groups = LinkGroups(FrameKind.HIDDEN)
            groups.add(session, Rows(position, values, NEW_TRIP))
            self._send(groups)

    def _drop(self, error: FrameError) -> None:
        self.num_dropped[error.code] += 1
        _logger.info("dropped (%d of this kind): %s", self.num_dropped[error.code], error)

    # ------------------------------------------------------------ a step

    def step(self) -> None:
        """Compute one batch of what waits, and send what comes out. Does nothing if nothing waits."""
        takes = plan_step(self.sessions.waiting(), self._budget.max_tokens)
        if not takes:
            self._settle()
            self._send_late()
            return
        work = [self._take(session_id, num_rows) for session_id, num_rows in takes]
        self._guarded(work)
        lack = self._shortage.after_step()
        if lack is not None:
            self._outbox.send_message(NoMemory(*lack))
        if self._stage.device.is_cpu or not self.has_work:  # a CPU's next forward would be over before they were said
            self._send_late()

    def _take(self, session_id: SessionId, num_rows: int) -> Work:
        session = self.sessions.served(session_id)
        rows = session.take(num_rows)
        return Work(session, rows, num_rows, rows.position + num_rows)

    def _guarded(self, work: list[Work], *, may_halve: bool = True) -> None:
        """A failed forward costs the sessions in it, never the process. One that there was no memory for is tried once
        more in halves before it costs anybody anything."""
        fault = self._attempt(work, may_halve)
        if fault is None:
            self._budget.worked()
            return
        if isinstance(fault, DeviceMemoryError | InternalError):  # the error's traceback held what it had allocated
            self._stage.device.release_cached()
        if may_halve and _may_be_halved(work, fault):
            self._in_halves(work)
            return
        if isinstance(fault, DeviceMemoryError):
            self._shortage.lacks(self.sessions.num_reserved_tokens)
        for item in work:
            self._fail(item.session, fault)

    def _attempt(self, work: list[Work], may_halve: bool) -> WorkerError | None:
        try:
            self._compute(work)
        except ChannelClosedError:
            raise
        except Exception as error:  # torch raises many types, and none of them is worth the other sessions
            self._settle()
            fault = as_fault(error)
            if may_halve and _may_be_halved(work, fault):
                _logger.warning("no memory for %d rows at once", num_rows_of(work))
            else:
                shows = not isinstance(fault, SessionError)
                _logger.error("a forward over %d sessions failed", len(work), exc_info=shows)
            return fault
        return None

    def _in_halves(self, work: list[Work]) -> None:
        self._budget.shrink(num_rows_of(work))
        for half in halves(work):
            still_open = [item for item in half if item.session in self.sessions]
            if still_open:
                self._guarded(still_open, may_halve=False)

    def _compute(self, work: list[Work]) -> None:
        begin = perf_counter_ns()
        layout = lay_out([(item.session.table, item.num_rows) for item in work])
        sampled = [(item, row) for item, row in zip(work, layout.last_rows, strict=True) if item.is_sampled]
        output = self._stage.forward(layout, self._inputs(work), [row for _, row in sampled])
        self._settle()  # an accelerator computes meanwhile
        self._send_late()
        is_drawn = self._stage.is_last and bool(sampled)
        if not is_drawn:  # drawing waits by itself
            self._stage.device.synchronize()
        for item in work:
            item.session.table.advance(item.num_rows)
        if is_drawn:
            self._draw(work, [item for item, _ in sampled], output, begin)
            return
        compute_us = _us_since(begin)
        if not self._stage.is_last:
            self._deliver_hidden(work, layout, output, compute_us)
        self._count(work, compute_us)

    def _inputs(self, work: list[Work]) -> Tensor:
        values = [item.rows.values for item in work]
        if not all(each.is_cpu for each in values):  # some tokens are known to the device only
            values = [each.to(self._stage.device.torch_device) for each in values]
        return torch.cat(values)

    def _count(self, work: list[Work], compute_us: int) -> None:
        num_decode = sum(item.num_decode_rows for item in work)
        self.meter.add(num_decode, num_rows_of(work) - num_decode, compute_us / 1e6, monotonic())

    # ------------------------------------------------------------ rows out

    def _deliver_hidden(self, work: list[Work], layout: StepLayout, output: Tensor, compute_us: int) -> None:
        begin = perf_counter_ns()
        output = output.to(device="cpu", dtype=self._stage.dtype, copy=True)  # a graph's output is written to again
        is_finite = torch.isfinite(output).all(dim=-1)
        copy_us = _us_since(begin)
        groups = LinkGroups(FrameKind.HIDDEN)
        for item, span in zip(work, layout.spans, strict=True):
            rows = slice(span.first_row, span.first_row + span.num_rows)
            if not bool(is_finite[rows].all()):
                self._fail(item.session, NonFiniteError())
                continue
            item.session.num_sound = item.stop
            self.sessions.sent.add(item.session.session_id, span.position, output[rows])
            num_had = min(max(0, item.session.start.next_from - span.position), span.num_rows)
            if num_had < span.num_rows:
                timing = _later(item.rows.timing, compute_us, copy_us)
                groups.add(item.session, Rows(span.position + num_had, output[rows][num_had:], timing))
        self._send(groups)

    def _draw(self, work: list[Work], sampled: list[Work], logits: Tensor, begin_ns: int) -> None:
        """Tokens for these sessions. Where that is possible the next step begins before they are here."""
        shapings = [item.session.shaping for item in sampled]
        shaped = self._shapings.apply(logits, shapings)
        step = Step(work, sampled, Draws(shaped, [(item.sampling, item.stop) for item in sampled]), begin_ns)
        if self._runs_ahead and all(item.may_run_ahead(self._stage.vocab_size) for item in sampled):
            self._under_way = step
            tokens = step.draws.tokens.clamp(min=0)  # where a row is not finite, any of the vocabulary will do
            self._shapings.add(shapings, tokens)
            for item, token in zip(sampled, torch.split(tokens, 1), strict=True):
                if not item.ends_here and self._goes_on(item.session):
                    self._push_own(item.session, Rows(item.stop, token, NEW_TRIP))
        else:
            self._deliver(step, logits)

    def _settle(self) -> None:
        """The tokens of a step that the next one did not wait for."""
        step, self._under_way = self._under_way, None
        if step is None:
            return
        try:
            self._deliver(step)
        except ChannelClosedError:
            raise
        except Exception as error:  # what a device finds wrong it says when it is waited for
            _logger.error("a forward over %d sessions failed", len(step.work), exc_info=True)
            for item in step.work:
                self._fail(item.session, as_fault(error))

    def _goes_on(self, session: Session) -> bool:
        """Not if it has ended while this was computed."""
        return not session.is_finished and session in self.sessions

    def _deliver(self, step: Step, logits: Tensor | None = None) -> None:
        """`logits`: as the model gave them, where somebody may want to know; else the next rows are queued already."""
        tokens = step.read()
        chosen = torch.tensor([token or 0 for token in tokens])
        compute_us = (step.end_ns - max(step.begin_ns, self._read_ns)) // 1000
        self._read_ns = step.end_ns
        wanted = [item.sampling.num_logprobs for item in step.sampled]
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        if logits is not None:
            self._shapings.add([item.session.shaping for item in step.sampled], chosen.to(logits.device))
            logprobs = logprobs_of(logits, tokens, wanted)
        groups = LinkGroups(FrameKind.TOKENS)
        for item, token, logprob, row in zip(step.sampled, tokens, logprobs, torch.split(chosen, 1), strict=True):
            if not self._goes_on(item.session):
                continue
            if token is None:
                self._fail(item.session, NonFiniteError())
                continue
            self._say(item, token, logprob, compute_us)
            if logits is not None and not item.session.is_finished:
                self._hand_on(item, row, groups)
        self._send(groups)
        if any(item.session.start.next_link is not None for item in step.sampled):
            self._send_late()  # after the rows: the head waits for them, and the user for the head
        self._count(step.work, compute_us)

    def _say(self, item: Work, token: int, logprob: TokenLogprobs | None, compute_us: int) -> None:
        """Who asked hears of it once the next step has what it needs."""
        start = item.session.start
        item.session.num_sound = item.stop
        assert start.stop is not None
        reason = finish_reason(token, item.stop, start.stop)
        timing = _later(item.rows.timing, compute_us, 0)
        logprobs = (logprob,) if logprob else ()
        self._late.append(Sampled(start.session_id, start.epoch, item.stop, (token,), reason, timing, logprobs))
        item.session.is_finished = reason is not None

    def _hand_on(self, item: Work, row: Tensor, groups: LinkGroups) -> None:
        """To where the next step begins. `row`: the token as int64 [1]."""
        if item.session.start.next_link is None:
            self._push_own(item.session, Rows(item.stop, row, NEW_TRIP))
        else:
            groups.add(item.session, Rows(item.stop, row.int()[:, None], NEW_TRIP))

    def _send_late(self) -> None:
        late, self._late = self._late, []
        for message in late:
            self._outbox.send_message(message)

    def _send(self, groups: LinkGroups) -> None:
        for link, frame in groups.frames():
            self._outbox.send_frame(link, frame)


def _may_be_halved(work: list[Work], fault: WorkerError) -> bool:
    """Not once something was computed: then it is not the forward that failed."""
    return isinstance(fault, DeviceMemoryError) and is_untouched(work) and num_rows_of(work) > 1


def _later(timing: StepTiming, compute_us: int, codec_us: int) -> StepTiming:
    return StepTiming(timing.compute_us + compute_us, timing.codec_us + codec_us)


def _us_since(begin_ns: int) -> int:
    return (perf_counter_ns() - begin_ns) // 1000


def _failed(start: StartSession, fault: WorkerError) -> SessionFailed:
    return SessionFailed(start.session_id, start.epoch, fault.code, str(fault))


def _check_stage(message: StartSession, stage: Stage) -> None:
    """Raises WrongStageError if the session's chain does not have this slice at this place."""
    is_head, is_tail = message.stage == 0, message.stage == message.num_stages - 1
    if is_head != stage.is_first or is_tail != stage.is_last:
        raise WrongStageError(f"stage {message.stage} of {message.num_stages} is not where these layers belong")
    if (message.next_link is None) != (is_head and is_tail):
        raise WrongStageError("only a stage that is head and tail in one sends its rows nowhere")
    if is_tail and (message.sampling is None or message.stop is None):
        raise WrongStageError("the tail needs to know how to sample and when to stop")
    if message.num_prompt_tokens < 1:
        raise WrongStageError("a prompt has at least one token")
