"""The supervisor: events in, lists of commands out."""

from __future__ import annotations

import random

import pytest

from client.status import (
    MAX_TRANSITIONS,
    AgentState,
    History,
    Pause,
    Quit,
    Resume,
    SessionReading,
    SetRules,
    Status,
    Transition,
    encode_line,
)
from client.supervisor import (
    MAX_BACK_OFF_S,
    MAX_LINE_BYTES,
    STABLE_RUN_S,
    AgentExited,
    AgentNotStarted,
    Command,
    ContributePressed,
    Event,
    Exit,
    KillAgent,
    LineBuffer,
    OutputReceived,
    PausePressed,
    PoolChanged,
    QuitPressed,
    RulesChanged,
    SendLine,
    SessionRead,
    Show,
    StartAgent,
    Supervisor,
    TimePassed,
    UnexpectedInput,
    WakeAfter,
)
from client.supervisor_table import (
    LISTENING,
    PAUSE_LIMIT_S,
    QUIT_LIMIT_S,
    START_LIMIT_S,
    TRANSITIONS,
    Input,
    Phase,
)
from protocol.pause import PauseMode, PauseReason, PauseRules

PAUSE_LINE = SendLine(encode_line(Pause()))
RESUME_LINE = SendLine(encode_line(Resume()))
QUIT_LINE = SendLine(encode_line(Quit()))
NO_RULES_LINE = SendLine(encode_line(SetRules(PauseRules())))
STARTED = [StartAgent(), NO_RULES_LINE, WakeAfter(START_LIMIT_S)]


def reported(state: AgentState, **fields: object) -> OutputReceived:
    return OutputReceived(encode_line(Status(state=state, **fields)))


SERVING = reported(AgentState.SERVING, worker_pids=(7,))
PAUSED = reported(AgentState.PAUSED)
FAILED = reported(AgentState.FAILED, message="The invitation has run out.")


def run(supervisor: Supervisor, *events: Event, now_s: float = 0.0) -> list[Command]:
    """All commands but Show, whose snapshots the tests read from the supervisor."""
    commands = [command for event in events for command in supervisor.handle(event, now_s)]
    return [command for command in commands if not isinstance(command, Show)]


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


def test_contribute_starts_the_agent(supervisor: Supervisor) -> None:
    assert run(supervisor, ContributePressed()) == STARTED
    assert supervisor.snapshot().phase is Phase.STARTING


def test_twenty_contributes_start_one_agent(supervisor: Supervisor) -> None:
    commands = run(supervisor, *[ContributePressed()] * 20)
    assert commands.count(StartAgent()) == 1


def test_the_first_report_ends_the_wait_for_the_agent(supervisor: Supervisor) -> None:
    assert run(supervisor, ContributePressed(), SERVING)[3:] == []
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING
    assert run(supervisor, TimePassed(), now_s=START_LIMIT_S + 1) == []


def test_pause_asks_the_agent_and_believes_it_when_it_says_so(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, PausePressed()) == [PAUSE_LINE, WakeAfter(PAUSE_LIMIT_S)]
    assert supervisor.snapshot().phase is Phase.PAUSING
    assert run(supervisor, PAUSED) == []
    assert supervisor.snapshot().phase is Phase.PAUSED


def test_a_pause_with_workers_left_is_no_pause_yet(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(), reported(AgentState.PAUSED, worker_pids=(7,)))
    assert supervisor.snapshot().phase is Phase.PAUSING


def test_an_agent_that_does_not_let_go_is_killed_and_the_pause_holds(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed())
    assert run(supervisor, TimePassed(), now_s=PAUSE_LIMIT_S) == [KillAgent()]
    assert run(supervisor, AgentExited(-9), now_s=PAUSE_LIMIT_S) == []
    snapshot = supervisor.snapshot()
    assert (snapshot.phase, snapshot.problem) == (Phase.STOPPED, "")


def test_resume_goes_to_the_paused_agent(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(), PAUSED)
    assert run(supervisor, ContributePressed()) == [RESUME_LINE, WakeAfter(START_LIMIT_S)]
    run(supervisor, SERVING)
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_fifty_fast_pauses_and_resumes_end_in_the_last_wish(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    commands = run(supervisor, *[PausePressed(), ContributePressed()] * 50, PausePressed())
    assert [command for command in commands if isinstance(command, SendLine)][-1] == PAUSE_LINE
    # The answers come late, and all of them.
    run(supervisor, *[PAUSED, SERVING] * 50)
    assert supervisor.snapshot().phase is Phase.PAUSING
    run(supervisor, PAUSED)
    assert supervisor.snapshot().phase is Phase.PAUSED


def test_a_late_answer_to_an_older_resume_is_not_shown_as_paused(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(), PAUSED)
    assert run(supervisor, SERVING) == [WakeAfter(PAUSE_LIMIT_S)]
    assert supervisor.snapshot().phase is Phase.PAUSING


def test_preparing_may_take_as_long_as_it_takes(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), reported(AgentState.PREPARING, total_bytes=10))
    assert run(supervisor, TimePassed(), now_s=3600.0) == []
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_a_pause_of_the_agents_own_is_no_wish_of_the_volunteers(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PAUSED)
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING
    run(supervisor, SERVING)
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_contributing_anyway_is_told_and_awaited_by_nobody(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PAUSED)
    assert run(supervisor, ContributePressed(anyway=True)) == [SendLine(encode_line(Resume(anyway=True)))]
    assert run(supervisor, PAUSED, TimePassed(), now_s=3600.0) == []
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_contributing_anyway_without_an_agent_starts_one(supervisor: Supervisor) -> None:
    assert run(supervisor, ContributePressed(anyway=True)) == STARTED


def test_a_pause_with_an_end_is_told_and_ends_by_itself(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, PausePressed(900.0))[0] == SendLine(encode_line(Pause(900.0)))
    run(supervisor, SERVING, PAUSED)
    assert supervisor.snapshot().phase is Phase.PAUSED
    assert run(supervisor, reported(AgentState.CONNECTING), now_s=900.0) == []
    assert supervisor.snapshot().phase is Phase.CONTRIBUTING


def test_another_end_replaces_the_first_one(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(900.0), PAUSED)
    assert run(supervisor, PausePressed()) == [PAUSE_LINE]
    run(supervisor, SERVING)
    assert supervisor.snapshot().phase is Phase.PAUSING


def test_another_end_does_not_put_off_the_limit(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed())
    assert run(supervisor, PausePressed(900.0), now_s=PAUSE_LIMIT_S - 1) == [SendLine(encode_line(Pause(900.0)))]
    assert run(supervisor, TimePassed(), now_s=PAUSE_LIMIT_S) == [KillAgent()]


def test_rules_are_the_first_thing_that_an_agent_hears(supervisor: Supervisor) -> None:
    rules = PauseRules(mode=PauseMode.WHEN_AWAY)
    assert run(supervisor, RulesChanged(rules)) == []
    line = SendLine(encode_line(SetRules(rules)))
    assert run(supervisor, ContributePressed())[:2] == [StartAgent(), line]
    run(supervisor, SERVING, AgentExited(1))
    assert run(supervisor, TimePassed(), now_s=1.0)[:2] == [StartAgent(), line]


def test_changed_rules_are_told_at_once(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    rules = PauseRules(run_on_battery=True)
    assert run(supervisor, RulesChanged(rules)) == [SendLine(encode_line(SetRules(rules)))]


def test_the_desktops_readings_go_to_an_agent_that_listens(supervisor: Supervisor) -> None:
    reading = SessionReading(3.0, False, None)
    assert run(supervisor, SessionRead(reading)) == []
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, SessionRead(reading)) == [SendLine(encode_line(reading))]
    assert run(supervisor, QuitPressed(), SessionRead(reading))[1:] == [WakeAfter(QUIT_LIMIT_S)]


def told(*transitions: Transition) -> OutputReceived:
    return OutputReceived(encode_line(History(transitions)))


def test_the_history_outlives_the_agent_that_told_it(supervisor: Supervisor) -> None:
    first, second = Transition(1.0, (PauseReason.VIDEO,), "vlc"), Transition(2.0)
    run(supervisor, ContributePressed(), told(first, second), AgentExited(1))
    run(supervisor, TimePassed(), told(second, Transition(3.0)), now_s=1.0)
    assert [transition.at_s for transition in supervisor.snapshot().history] == [1.0, 2.0, 3.0]


def test_the_history_is_bounded_and_ends_no_wait(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed())
    for start in (0, MAX_TRANSITIONS):
        run(supervisor, told(*(Transition(float(start + index)) for index in range(MAX_TRANSITIONS))))
    assert supervisor.snapshot().history[0].at_s == MAX_TRANSITIONS
    assert supervisor.snapshot().phase is Phase.STARTING


def test_a_crash_is_shown_and_answered_by_a_restart(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, AgentExited(3), now_s=5.0) == [WakeAfter(1.0)]
    snapshot = supervisor.snapshot()
    assert snapshot.phase is Phase.RESTARTING
    assert snapshot.problem == "The background process stopped unexpectedly (exit status 3)."
    assert (snapshot.restart_in_s, snapshot.status.state) == (1, AgentState.STOPPED)
    assert run(supervisor, TimePassed(), now_s=6.0) == STARTED


def test_a_signal_is_named(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), AgentExited(-11))
    assert "signal 11" in supervisor.snapshot().problem


def test_an_agent_that_cannot_be_started_is_tried_again(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed())
    assert run(supervisor, AgentNotStarted("No such file")) == [WakeAfter(1.0)]
    assert supervisor.snapshot().problem == "The background process could not be started: No such file"


def test_the_back_off_doubles_up_to_its_limit(supervisor: Supervisor) -> None:
    now_s, delays = 0.0, []
    run(supervisor, ContributePressed())
    for _ in range(9):
        run(supervisor, AgentExited(1), now_s=now_s)
        delays.append(supervisor.snapshot().restart_in_s)
        now_s += MAX_BACK_OFF_S
        run(supervisor, TimePassed(), now_s=now_s)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_long_run_starts_the_back_off_from_the_beginning(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), AgentExited(1))
    run(supervisor, TimePassed(), now_s=1.0)
    run(supervisor, AgentExited(1), now_s=1.0 + STABLE_RUN_S)
    assert supervisor.snapshot().restart_in_s == 1


def test_the_countdown_is_shown_each_second(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), AgentExited(1))
    run(supervisor, TimePassed(), now_s=1.0)
    run(supervisor, AgentExited(1), now_s=1.0)
    commands = supervisor.handle(TimePassed(), 2.0)
    assert commands == [WakeAfter(1.0), Show(supervisor.snapshot())]
    assert supervisor.snapshot().restart_in_s == 1


def test_a_pause_during_the_back_off_cancels_the_restart(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), AgentExited(1))
    assert run(supervisor, PausePressed()) == []
    assert run(supervisor, TimePassed(), now_s=99.0) == []
    assert supervisor.snapshot().phase is Phase.STOPPED


def test_a_silent_agent_is_replaced(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed())
    assert run(supervisor, TimePassed(), now_s=START_LIMIT_S) == [KillAgent()]
    assert "did not answer" in supervisor.snapshot().problem
    assert run(supervisor, AgentExited(-9), now_s=START_LIMIT_S) == STARTED


def test_a_failure_waits_for_the_volunteer(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), FAILED)
    assert supervisor.snapshot().phase is Phase.FAILED
    assert run(supervisor, ContributePressed()) == [PAUSE_LINE, RESUME_LINE, WakeAfter(START_LIMIT_S)]


def test_a_failure_that_crosses_a_pause_counts_as_paused(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(), FAILED)
    assert supervisor.snapshot().phase is Phase.PAUSED


def test_tokens_are_summed_over_pauses_and_crashes(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), reported(AgentState.SERVING, num_tokens=10))
    run(supervisor, PausePressed(), PAUSED, ContributePressed(), reported(AgentState.SERVING, num_tokens=4))
    run(supervisor, reported(AgentState.SERVING, num_tokens=5), AgentExited(1))
    assert supervisor.snapshot().num_tokens == 15


def test_an_agent_that_ends_after_a_failure_is_not_restarted_and_its_sentence_stays(supervisor: Supervisor) -> None:
    assert run(supervisor, ContributePressed(), FAILED, AgentExited(1))[3:] == []
    snapshot = supervisor.snapshot()
    assert (snapshot.phase, snapshot.status.message) == (Phase.STOPPED, "The invitation has run out.")
    assert run(supervisor, ContributePressed())[0] == StartAgent()


def test_quit_lets_the_agent_leave_first(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, QuitPressed()) == [QUIT_LINE, WakeAfter(QUIT_LIMIT_S)]
    assert run(supervisor, reported(AgentState.STOPPED)) == []
    assert run(supervisor, AgentExited(0)) == [Exit()]


def test_quit_without_an_agent_ends_at_once(supervisor: Supervisor) -> None:
    assert run(supervisor, QuitPressed()) == [Exit()]


def test_quit_kills_an_agent_that_does_not_leave(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, QuitPressed())
    assert run(supervisor, TimePassed(), now_s=QUIT_LIMIT_S) == [KillAgent()]
    assert run(supervisor, AgentExited(-9), now_s=QUIT_LIMIT_S) == [Exit()]


def test_another_pool_replaces_the_agent(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING)
    assert run(supervisor, PoolChanged(), ContributePressed()) == [QUIT_LINE, WakeAfter(QUIT_LIMIT_S)]
    assert run(supervisor, AgentExited(0)) == STARTED


def test_another_pool_while_paused_ends_the_agent_and_starts_none(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), SERVING, PausePressed(), PAUSED, PoolChanged())
    assert run(supervisor, AgentExited(0)) == []
    assert supervisor.snapshot().phase is Phase.STOPPED


@pytest.mark.expected_logs("was not understood")
@pytest.mark.parametrize(
    "line",
    [b"hello", b"\xff\xfe\x00", b"[]", b"null", b"{}", b'{"type":"pause"}', b'{"type":"status","state":"dancing"}'],
)
def test_a_garbage_line_is_counted_and_not_fatal(supervisor: Supervisor, line: bytes) -> None:
    run(supervisor, ContributePressed(), OutputReceived(line + b"\n"), SERVING)
    snapshot = supervisor.snapshot()
    assert (snapshot.num_garbage_lines, snapshot.status.state) == (1, AgentState.SERVING)


@pytest.mark.expected_logs("was not understood")
def test_a_line_without_an_end_is_bounded_and_counted_once(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed())
    for _ in range(10):
        run(supervisor, OutputReceived(b" " * MAX_LINE_BYTES))
    run(supervisor, OutputReceived(b"\n"), SERVING)
    assert supervisor.snapshot().num_garbage_lines == 0  # blanks alone are no line
    run(supervisor, OutputReceived(encode_line(Status(state=AgentState.PAUSED)).strip() + b" " * 2 * MAX_LINE_BYTES))
    run(supervisor, OutputReceived(b"\n"))
    assert supervisor.snapshot().num_garbage_lines == 1
    assert supervisor.snapshot().status.state is AgentState.SERVING


def test_lines_are_put_together_from_any_pieces() -> None:
    text = b"one\ntwo\n\nthree\nrest"
    for size in range(1, len(text) + 1):
        lines = LineBuffer()
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert [line for piece in pieces for line in lines.feed(piece)] == [b"one", b"two", b"three"]


def test_half_a_line_of_a_dead_agent_does_not_spoil_the_next_ones(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed(), OutputReceived(b'{"type":'), AgentExited(1))
    run(supervisor, TimePassed(), SERVING, now_s=1.0)
    assert supervisor.snapshot().num_garbage_lines == 0


def test_a_flood_of_reports_in_one_read_is_shown_once(supervisor: Supervisor) -> None:
    run(supervisor, ContributePressed())
    line = encode_line(Status(state=AgentState.WAITING))
    assert len(supervisor.handle(OutputReceived(line * 1000), 0.0)) == 1


def test_what_cannot_happen_is_an_error(supervisor: Supervisor) -> None:
    with pytest.raises(UnexpectedInput, match="EXITED cannot happen while STOPPED"):
        supervisor.handle(AgentExited(0), 0.0)


def test_every_phase_knows_what_to_do_with_every_wish() -> None:
    pauses = {Input.PAUSE, Input.PAUSE_AFTER_ANSWERS}
    wishes = {Input.CONTRIBUTE, Input.CONTRIBUTE_ANYWAY, *pauses, Input.QUIT, Input.CHANGE_POOL}
    reports = {Input.REPORTED, Input.REPORTED_PAUSED, Input.REPORTED_FAILED, Input.EXITED}
    without_process = {Phase.STOPPED, Phase.RESTARTING, Phase.ENDED}
    assert not without_process & LISTENING
    for phase in Phase:
        assert set(TRANSITIONS[phase]) >= wishes
        assert (set(TRANSITIONS[phase]) >= reports) is (phase not in without_process)


class World:
    """One agent process at most, as the commands have it, and what may happen to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.supervisor = Supervisor()
        self.now_s = 0.0
        self.alive = False
        self.killed = False
        self.num_exits = 0

    def step(self) -> None:
        self.now_s += self.random.choice((0.0, 0.1, 5.0, 61.0))
        event = self._next_event()
        if isinstance(event, AgentExited | AgentNotStarted):
            self.alive = self.killed = False
        for command in self.supervisor.handle(event, self.now_s):
            self._obey(command)

    def _next_event(self) -> Event:
        wishes: list[Event] = [
            *(ContributePressed(), ContributePressed(anyway=True), PausePressed(), PausePressed(900.0)),
            PausePressed(after_answers=True),
            *(PoolChanged(), TimePassed(), RulesChanged(PauseRules()), SessionRead(SessionReading(1.0))),
        ]
        if self.random.random() < 0.02:
            wishes.append(QuitPressed())
        talk: list[Event] = [SERVING, PAUSED, FAILED, OutputReceived(b"?\n"), AgentExited(1)] if self.alive else []
        return AgentExited(-9) if self.killed else self.random.choice(wishes + talk)

    def _obey(self, command: Command) -> None:
        if isinstance(command, StartAgent):
            assert not self.alive
            self.alive = True
        elif isinstance(command, SendLine | KillAgent):
            assert self.alive
            self.killed = isinstance(command, KillAgent)
        elif isinstance(command, Exit):
            assert not self.alive
            self.num_exits += 1


@pytest.mark.allowed_logs("was not understood")
@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_there_is_one_agent_at_most_and_none_after_the_end(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
    assert world.num_exits == (world.supervisor.snapshot().phase is Phase.ENDED)
