from __future__ import annotations

from pathlib import Path

from benchmarks.claims.watching import Benchmarked, Held, Planned, Started, Watch, Worked, busy_s, notes_of, read_notes
from coordinator.scheduler import commands as cmd
from coordinator.scheduler import events as ev
from coordinator.scheduler.state import DeviceKey
from protocol.values import BatchTime, DeviceId, LayerBenchmark, LayerRange, NodeId, SessionId, Variant

A, B = (DeviceKey(NodeId(letter * 32), DeviceId("cpu")) for letter in "ab")
CHAIN = (cmd.ChainStage(A, 1, LayerRange(0, 2)), cmd.ChainStage(B, 1, LayerRange(2, 4)))
WORK = ev.StepsSeen(A, 1, num_steps=10, num_decode_rows=12, num_prompt_tokens=30, compute_s=0.5)


def test_what_a_node_is_to_hold_is_noted_with_its_reason() -> None:
    command = cmd.Assign(A, 1, "2c" * 32, Variant.FLOAT32, LayerRange(0, 2), "because")
    assert list(notes_of(ev.TimePassed(), [command], 0.1, 5.0)) == [Held(5.0, A.node_id, "0-1", "because")]


def test_a_chain_is_noted_with_its_nodes_in_order_and_the_time_it_took_to_find() -> None:
    command = cmd.StartChain(SessionId("0" * 32), CHAIN)
    assert list(notes_of(ev.TimePassed(), [command], 0.1, 5.0)) == [Started(5.0, (A.node_id, B.node_id), 0.1)]


def test_live_work_measurements_and_plans_are_noted() -> None:
    measured = ev.DeviceMeasured(A, "2c" * 32, LayerBenchmark((BatchTime(1, 0.002),), 1e-4, 1e-3))
    assert list(notes_of(WORK, [], 0.0, 5.0)) == [Worked(5.0, A.node_id, 0.5, 10, 42)]
    assert list(notes_of(ev.Replan(), [], 0.2, 5.0)) == [Planned(5.0, 0.2)]
    (note,) = notes_of(measured, [], 0.0, 5.0)
    assert isinstance(note, Benchmarked)
    assert (note.prefill_s, note.head_s) == (1e-4, 1e-3)


def test_nothing_is_noted_of_what_does_not_matter() -> None:
    assert list(notes_of(ev.TimePassed(), [cmd.Release(A, 1)], 0.0, 5.0)) == []


def test_notes_are_read_as_they_were_written_and_from_a_time_on(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    with Watch.open(path) as watch:
        watch.note(WORK, [], 0.0)
        watch.note(ev.Replan(), [], 0.5)
    first, second = read_notes(path)
    assert isinstance(first, Worked)
    assert isinstance(second, Planned)
    assert first.at_s <= second.at_s
    assert read_notes(path, second.at_s + 1.0) == []


def test_busy_time_is_added_up_by_node() -> None:
    notes = [Worked(1.0, "a", 0.5, 1, 1), Worked(2.0, "b", 0.25, 1, 1), Worked(3.0, "a", 0.5, 1, 1), Planned(4.0, 0.1)]
    assert busy_s(notes) == {"a": 1.0, "b": 0.25}
