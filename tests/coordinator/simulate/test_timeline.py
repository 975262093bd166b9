"""Time passes in order, and the scheduler hears one thing after the other."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.scheduler import events as ev
from coordinator.scheduler.commands import Command, Measure
from coordinator.scheduler.state import DeviceKey
from coordinator.simulate.timeline import Timeline
from protocol.values import DeviceId, NodeId, Variant

KEY = DeviceKey(NodeId("0" * 32), DeviceId("gpu:0"))


class Echo:
    """Orders one measurement for each node that leaves."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, ev.Event]] = []

    def handle(self, event: ev.Event, now_s: float) -> Sequence[Command]:
        self.heard.append((now_s, event))
        return [Measure(KEY, "m", Variant.BFLOAT16)] if isinstance(event, ev.NodeLeft) else []


def test_things_happen_in_order_of_time_and_then_of_writing() -> None:
    timeline, done = Timeline(Echo()), []
    timeline.after(2.0, done.append, "late")
    timeline.after(1.0, done.append, "first")
    timeline.after(1.0, done.append, "second")
    timeline.run(10.0, lambda: False)
    assert done == ["first", "second", "late"]
    assert timeline.now_s == 2.0


def test_nothing_happens_after_the_end() -> None:
    timeline, done = Timeline(Echo()), []
    timeline.after(3.0, done.append, "too late")
    timeline.run(2.9, lambda: False)
    assert done == []
    timeline.run(3.0, lambda: True)
    assert done == []


def test_what_a_command_causes_is_told_after_all_commands_are_carried_out() -> None:
    scheduler = Echo()
    timeline = Timeline(scheduler)
    obeyed: list[Command] = []

    def obey(command: Command, event: ev.Event) -> None:
        timeline.tell(ev.TimePassed())
        assert [type(one) for _, one in scheduler.heard] == [ev.NodeLeft]
        obeyed.append(command)

    timeline.obey = obey
    timeline.tell(ev.NodeLeft(KEY.node_id))
    assert len(obeyed) == 1
    assert [type(one) for _, one in scheduler.heard] == [ev.NodeLeft, ev.TimePassed]
