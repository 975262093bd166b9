from __future__ import annotations

from benchmarks.recovery.faults import replaceable
from benchmarks.recovery.keeping import width

LAYERS = {"one": "0-8", "two": "0-8", "three": "9-17", "four": "9-17", "five": "9-17"}


def test_a_node_can_be_spared_if_another_one_outside_of_the_chain_holds_its_layers() -> None:
    assert replaceable(LAYERS, ("one", "three")) == ["one", "three"]
    assert replaceable(LAYERS, ("one", "three"), frozenset({"two"})) == ["three"]
    assert replaceable({"one": "0-8", "three": "9-17", "four": "9-17"}, ("one", "three")) == ["three"]


def test_a_node_that_does_not_serve_can_not_be_spared() -> None:
    assert replaceable({"two": "0-8"}, ("one",)) == []


def test_the_width_of_layers_counts_both_ends() -> None:
    assert [width("5-9"), width("0-0"), width("3")] == [5, 1, 1]
