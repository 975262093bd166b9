"""Asking where rows are: who is asked, whose answer counts, and what follows when none comes."""

from __future__ import annotations

import pytest

from coordinator.deadlines import LEAST_S, LEAST_SILENT_S
from coordinator.lateness import EARLY_REPLY_S, MAX_ASKS, REPLY_S, Late, Lateness
from coordinator.nodes import NodeView
from coordinator.scheduler.chain_times import ChainTimes, HopTimes, StageTimes
from coordinator.scheduler.commands import ChainStage
from coordinator.sessions import Order, Session
from protocol.messages import RowsAt, TokensSampled, WhereAreRows
from protocol.values import DeviceWork, LayerRange, Sampling
from tests.fakes import pool_facts as facts

ONE = facts.session_id(1)
CUTS = (0, 4, 8)


class Case:
    """A session over nodes 1 and 2, of which tokens came every 10 ms; node 3 is in the pool as well."""

    def __init__(self, *versions: int, prompt: tuple[int, ...] = (5, 6, 7)) -> None:
        hellos = {n: facts.hello(n, version=v) for n, v in enumerate(versions or (4, 4, 4), start=1)}
        self.nodes = {facts.node_id(n): NodeView(hello, 0.0) for n, hello in hellos.items()}
        self.session = Session(Order(ONE, facts.DIGEST, prompt, 1000, Sampling(), (2,)))
        self.lateness = Lateness({ONE: self.session}, self.nodes, self.times)
        self.step_s, self.row_s = 0.001, 0.0
        self.now_s = 0.0

    def times(self, manifest_hash: str, chain: object) -> ChainTimes:
        assert manifest_hash == facts.DIGEST
        return ChainTimes((StageTimes(self.step_s, 0.001),) * 2, (HopTimes(0.001, self.row_s),) * 2)

    def start(self) -> None:
        chain = [ChainStage(facts.key(n), 1, LayerRange(CUTS[n - 1], CUTS[n])) for n in (1, 2)]
        self.session.start(tuple(chain), {})
        self.follow()

    def open(self) -> None:
        for stage in (0, 1):
            self.session.stage_opened(facts.node_id(stage + 1), self.session.epoch, stage)
        self.follow()

    def token(self) -> None:
        self.now_s += 0.01
        self.session.sampled(facts.node_id(2), TokensSampled(ONE, self.session.epoch, len(self.session.log), (9,)))
        self.follow()

    def run(self, num_tokens: int = 20) -> Case:
        self.start()
        self.open()
        for _ in range(num_tokens):
            self.token()
        return self

    def follow(self) -> None:
        self.lateness.follow(self.session, self.now_s)
        self.lateness.validate()

    def hears(self, *numbers: int) -> None:
        """These nodes say something."""
        for number in numbers:
            self.nodes[facts.node_id(number)].heard_at_s = self.now_s

    def after(self, seconds: float) -> list[object]:
        self.now_s += seconds
        return list(self.lateness.look(self.now_s))

    def asked(self, seconds: float = LEAST_S) -> list[int]:
        """The numbers of the nodes that are asked when so much time has passed."""
        found = self.after(seconds)
        assert all(isinstance(each, tuple) and isinstance(each[1], WhereAreRows) for each in found)
        return [facts.number_of(each[0]) for each in found]  # type: ignore[index]

    def answer(
        self,
        number: int,
        waiting_s: float = 0.0,
        num_received: int = 22,
        num_sent: int = 22,
        silent_s: float | None = None,
    ) -> list[Late]:
        self.hears(number)
        rows = RowsAt(ONE, self.session.epoch, number - 1, num_received, num_sent, waiting_s, silent_s)
        return self.lateness.heard(facts.node_id(number), rows, self.now_s)


def test_nobody_is_asked_before_an_answer_is_late() -> None:
    case = Case().run()
    assert case.asked(LEAST_S - 0.01) == []
    assert case.asked(0.02) == [1, 2]
    assert case.asked(0.02) == []


def test_the_stage_that_has_had_the_row_for_longer_than_it_may_is_left_and_blamed() -> None:
    case = Case().run()
    case.asked()
    assert case.answer(1) == []
    [late] = case.answer(2, 0.55)
    assert late.avoid == late.blamed == {facts.key(2)}
    assert case.lateness.counts == {"hangs": 1}
    assert case.lateness.troubles == {facts.node_id(2): {"hangs": 1}}


def test_a_stage_may_take_four_times_what_its_steps_took() -> None:
    case = Case().run()
    view = case.nodes[facts.node_id(2)].devices[facts.CPU]
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 0, 4 * 0.3))
    case.asked()
    case.answer(1)
    assert case.answer(2, 0.55) == []
    assert case.asked(0.6) == []
    assert case.asked(0.1) == [1, 2], "when its time is over it is asked again"
    case.answer(1)
    [late] = case.answer(2, 1.25)
    assert late.blamed == {facts.key(2)}


def test_what_its_steps_took_with_prompts_in_them_is_no_excuse_for_one_without() -> None:
    case = Case().run()
    view = case.nodes[facts.node_id(2)].devices[facts.CPU]
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 2000, 4 * 0.8))
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 0, 4 * 0.05))
    case.asked()
    case.answer(1)
    [late] = case.answer(2, 0.55)
    assert late.blamed == {facts.key(2)}


def test_while_prompts_are_on_the_device_what_they_took_counts() -> None:
    case = Case().run()
    view = case.nodes[facts.node_id(2)].devices[facts.CPU]
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 2000, 4 * 0.8))
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 0, 4 * 0.05))
    case.lateness._rows_on[facts.key(2)] += 1
    case.asked()
    case.answer(1)
    assert case.answer(2, 3.1) == []


def test_prompts_of_others_on_the_device_count() -> None:
    """A step may carry a chunk of 512 rows, of 1 ms each."""
    case = Case().run()
    case.lateness._rows_on[facts.key(2)] += 5000
    case.asked()
    case.answer(1)
    assert case.answer(2, 1.9) == []


def waiting_for_its_prompt() -> Case:
    """It takes 60 s; steps of node 2 have taken 0.8 s."""
    case = Case(prompt=(7,) * 60_000)
    case.start()
    view = case.nodes[facts.node_id(2)].devices[facts.CPU]
    view.worked(DeviceWork(facts.CPU, 1, 4, 4, 2000, 4 * 0.8))
    case.open()
    return case


def test_a_long_prompt_waits_for_a_worker_that_is_heard() -> None:
    case = waiting_for_its_prompt()
    for num_asks in range(1, 15):
        case.now_s += 10.0
        found = case.lateness.look(case.now_s)
        assert len(found) == 2
        assert case.answer(1) == []
        assert case.answer(2, 10.0 * num_asks, 60_000, 0, silent_s=1.0) == []


def test_a_worker_that_is_silent_over_prompts_for_longer_than_its_steps_take_is_left() -> None:
    case = waiting_for_its_prompt()
    for waiting_s in (LEAST_SILENT_S + 1e-3, 4 * 0.8 + 3.0):
        case.now_s += LEAST_SILENT_S
        case.lateness.look(case.now_s)
        case.answer(1)
        found = case.answer(2, waiting_s, 60_000, 0, silent_s=waiting_s - 1.5)
    assert [late.blamed for late in found] == [{facts.key(2)}]


def test_silence_before_its_rows_came_says_nothing() -> None:
    case = waiting_for_its_prompt()
    case.now_s += LEAST_SILENT_S + 1e-3
    case.lateness.look(case.now_s)
    case.answer(1)
    assert case.answer(2, 0.5, 60_000, 0, silent_s=600.0) == []


def test_what_it_says_of_its_silence_counts_for_no_single_step() -> None:
    """Decoding has limits of its own, and shorter ones."""
    case = Case().run()
    case.asked()
    case.answer(1)
    [late] = case.answer(2, 0.55, silent_s=0.0)
    assert late.blamed == {facts.key(2)}


def test_a_prompt_that_nobody_seems_to_have_is_waited_for_until_it_is_late() -> None:
    case = waiting_for_its_prompt()
    for _ in range(20):
        case.now_s += 10.0
        if case.lateness.look(case.now_s):
            case.answer(1, num_received=60_000, num_sent=60_000)
            assert case.answer(2, num_received=60_000, num_sent=60_000) == []


def test_an_agent_beside_a_prompt_has_longer_to_answer() -> None:
    case = waiting_for_its_prompt()
    assert len(case.after(LEAST_SILENT_S + 1e-3)) == 2
    assert case.after(EARLY_REPLY_S - 0.1) == []
    case.hears(1, 3)
    [late] = case.after(0.2)
    assert isinstance(late, Late)
    assert late.blamed == {facts.key(2)}


def test_rows_of_a_prompt_that_queue_on_their_way_behind_those_of_others_are_no_cut() -> None:
    case = waiting_for_its_prompt()
    case.row_s = 0.001
    for _ in range(4):
        case.now_s += 10.0
        if case.lateness.look(case.now_s):
            case.answer(1, num_received=60_000, num_sent=60_000)
            assert case.answer(2, num_received=0, num_sent=0) == []
    assert case.lateness.counts["cut"] == 0


def test_a_node_that_says_nothing_while_others_do_is_blamed() -> None:
    case = Case().run()
    case.asked()
    case.now_s += 0.01
    case.answer(1)
    [late] = case.after(REPLY_S)
    assert isinstance(late, Late)
    assert late.blamed == {facts.key(2)}
    assert case.lateness.troubles == {facts.node_id(2): {"silent": 1}}


def test_a_node_that_says_something_else_is_not_silent() -> None:
    case = Case().run()
    case.asked()
    case.now_s += 0.01
    case.answer(1)
    case.hears(2)
    assert case.after(REPLY_S) == []


def test_of_a_node_that_is_alone_in_its_chain_another_one_is_the_witness() -> None:
    case = Case()
    case.times = lambda *_: ChainTimes((StageTimes(0.001, 0.001),), (HopTimes(0.0, 0.0),))  # type: ignore[method-assign]
    case.lateness = Lateness({ONE: case.session}, case.nodes, case.times)
    case.session.start((ChainStage(facts.key(2), 1, LayerRange(0, 8)),), {})
    case.follow()
    case.now_s += 0.01
    case.hears(3)
    assert case.asked(1.01) == [2, 3]
    case.now_s += 0.01
    case.hears(3)
    [late] = case.after(REPLY_S)
    assert isinstance(late, Late)
    assert late.blamed == {facts.key(2)}


def test_when_nobody_at_all_is_heard_nobody_is_blamed() -> None:
    case = Case().run()
    for _ in range(MAX_ASKS - 1):
        assert case.asked(2.0) == [1, 2]
        assert case.after(REPLY_S) == []


def test_who_looks_too_late_at_its_watch_first_reads_its_mail() -> None:
    case = Case().run()
    case.asked()
    case.hears(3)
    case.now_s += 0.01
    case.hears(3)
    assert case.after(REPLY_S + 5.0) == []
    assert case.answer(1) == []
    assert case.answer(2) == []


def test_it_does_so_once() -> None:
    case = Case().run()
    case.asked()
    case.now_s += 0.01
    case.hears(3)
    assert case.after(REPLY_S + 5.0) == []
    [late] = case.after(5.0)
    assert isinstance(late, Late)
    assert late.blamed == {facts.key(1), facts.key(2)}


def test_rows_that_stay_between_two_stages_are_a_cut_and_nobody_is_blamed() -> None:
    case = Case().run()
    for is_cut in (False, True):
        case.asked()
        case.answer(1, num_received=23, num_sent=23)
        found = case.answer(2, num_received=22, num_sent=23)
        assert [late.cut for late in found] == [(facts.node_id(1), facts.node_id(2))] * is_cut
        assert not any(late.blamed for late in found)
        case.asked(0.1)
    assert case.lateness.counts["cut"] == 1
    assert case.lateness.troubles == {facts.node_id(1): {"cut": 1}, facts.node_id(2): {"cut": 1}}


def test_rows_that_arrive_slowly_are_no_cut() -> None:
    case = Case().run()
    for num_received in range(22, 40):
        case.asked(1.0)
        case.answer(1, num_received=100, num_sent=100)
        assert case.answer(2, num_received=num_received, num_sent=23) == []


def test_a_token_ends_all_suspicion() -> None:
    case = Case().run()
    case.asked()
    case.answer(1)
    case.token()
    assert case.answer(2, 9.0) == [], "that was about another row"
    assert case.asked(LEAST_S - 0.02) == []


def test_answers_of_another_node_or_epoch_and_those_that_nobody_asked_for_are_dropped() -> None:
    case = Case().run()
    assert case.answer(2, 9.0) == []
    case.asked()
    case.answer(1)
    wrong = [(3, case.session.epoch, 1), (1, case.session.epoch, 1), (2, case.session.epoch - 1, 1), (2, 1, 7)]
    for number, epoch, stage in wrong:
        rows = RowsAt(ONE, epoch, stage, 22, 22, 9.0)
        assert case.lateness.heard(facts.node_id(number), rows, case.now_s) == []
    other = RowsAt(facts.session_id(9), 1, 1, 22, 22, 9.0)
    assert case.lateness.heard(facts.node_id(2), other, case.now_s) == []


def test_after_so_many_questions_without_anybody_to_blame_it_moves_all_the_same() -> None:
    case = Case().run()
    for number in range(1, MAX_ASKS + 1):
        assert case.asked() == [1, 2]
        case.answer(1)
        found = case.answer(2)
        assert len(found) == (number == MAX_ASKS)
    assert not found[0].blamed
    assert not found[0].avoid


def test_a_node_of_an_older_version_is_not_asked_has_its_time_and_is_avoided_but_not_blamed() -> None:
    case = Case(4, 3, 3).run()
    case.step_s = 0.4
    assert case.asked() == [1]
    assert case.answer(1) == []
    assert case.asked() == [], "it may still be computing"
    found: list[Late] = []
    for _ in range(100):
        case.after(0.1)
        found += case.answer(1) if not found else []
    assert [(late.avoid, late.blamed) for late in found] == [({facts.key(2)}, frozenset())]


@pytest.mark.parametrize("opened", [0, 1])
def test_a_stage_whose_agent_answers_but_whose_worker_does_not_open_is_blamed(opened: int) -> None:
    case = Case()
    case.start()
    case.session.stage_opened(facts.node_id(opened + 1), case.session.epoch, opened)
    case.follow()
    case.asked(1.01)
    found = [*case.answer(1, num_received=0, num_sent=0), *case.answer(2, num_received=0, num_sent=0)]
    assert [late.blamed for late in found] == [{facts.key(2 - opened)}]


def test_a_coordinator_that_stood_still_gives_everybody_that_time() -> None:
    case = Case().run()
    case.now_s += 3.0
    case.lateness.forgive(3.0)
    assert case.asked(LEAST_S - 0.02) == []
    assert case.asked(0.03) == [1, 2]
    case.now_s += 3.0
    case.hears(3)
    case.lateness.forgive(3.0)
    assert case.after(0.0) == []


def test_a_session_that_moves_or_ends_leaves_nothing() -> None:
    case = Case().run()
    case.session.move_away({facts.key(2)})
    case.follow()
    assert case.session.avoid == {facts.key(2)}
    assert case.asked(100.0) == []
    case.start()
    assert case.asked(100.0) == [1, 2]
    case.session.end()
    case.follow()
    assert case.asked(100.0) == []
    assert not case.lateness._rows_on


def test_a_prompt_counts_at_its_devices_until_its_first_token() -> None:
    case = Case()
    case.start()
    assert not case.lateness._rows_on
    case.open()
    assert case.lateness._rows_on == {facts.key(1): 3, facts.key(2): 3}
    case.token()
    assert not case.lateness._rows_on
