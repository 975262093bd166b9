from __future__ import annotations

import pytest

from benchmarks.network.topology import Line, Link, Topology, regions

NEAR, FAR = Link(delay_s=0.002), Link(delay_s=0.05)


def test_pairs_without_a_link_of_their_own_have_the_usual_one() -> None:
    topology = Topology(("a", "b"), links={("a", "b"): FAR}, usual_link=NEAR)
    assert topology.link("a", "b") == FAR
    assert topology.link("b", "a") == NEAR
    assert topology.line("a") == Line()
    assert sorted(topology.pairs()) == [("a", "b"), ("b", "a")]


def test_regions_are_near_within_and_far_between_in_both_directions() -> None:
    topology = regions({"west": ["a", "b"], "east": ["c"]}, NEAR, {("west", "east"): FAR})
    assert topology.machines == ("a", "b", "c")
    assert topology.link("a", "b") == NEAR
    assert topology.link("b", "c") == topology.link("c", "b") == FAR


def test_two_regions_without_a_link_are_a_mistake() -> None:
    with pytest.raises(KeyError):
        regions({"west": ["a"], "east": ["b"]}, NEAR, {})


def test_lines_are_added_to_those_that_are_there() -> None:
    slow, fast = Line(up_bits_per_s=1e6), Line(up_bits_per_s=1e8)
    topology = Topology(("a", "b"), lines={"a": slow}).with_lines({"b": fast})
    assert (topology.line("a"), topology.line("b")) == (slow, fast)
