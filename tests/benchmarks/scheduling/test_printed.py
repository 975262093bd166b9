"""Printed tables are taken over as they are, and their sums are set against the aims."""

from __future__ import annotations

import json

from benchmarks.scheduling.printed import as_printed, optimum_section, speed_section
from tests.benchmarks.scheduling.runs import OPTIMUM, sums


def test_printed_tables_are_taken_over_with_remarks_after_them_and_one_head() -> None:
    head = "\n".join(OPTIMUM.splitlines()[:2])
    second = f"{head}\n| 2 | 6 | llama3-8b | 1 lan | 9.0 | +0.00% | 0.00% | 5.00% | 1.0 |\n"
    text = as_printed(OPTIMUM + sums(2, 0.01, 0.02) + second + sums(1, 0.0, 0.0))
    assert text.count(head) == 1
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 5
    assert "{" not in text
    assert text.endswith("```\n1: found 1+2:40\n1: best  1:40\n```")


def test_tables_of_different_things_keep_their_heads_and_prose() -> None:
    text = "A leave:\n\n| a |\n|---|\n| 1 |\n\nA join:\n\n| a |\n|---|\n| 2 |"
    assert as_printed(text) == text


def test_the_distance_from_the_optimum_is_the_mean_over_all_parts_pools_and_the_worst_of_any() -> None:
    text = optimum_section(OPTIMUM + sums(3, 0.01, 0.02) + sums(1, 0.05, 0.08))
    assert "| our plan below the best found | 2.00 % | 8.00 % | aim: 3 % mean, 10 % worst: met |" in text
    assert text.startswith("4 pools")
    assert "worst: missed" in optimum_section(OPTIMUM + sums(3, 0.01, 0.2))


def test_an_optimum_that_was_not_proven_is_said_beside_the_verdict() -> None:
    text = optimum_section(sums(3, 0.01, 0.02).replace('"num_proven": 3', '"num_proven": 1'))
    assert "worst: met, but 2 are unproven" in text
    assert "In 1 of them the bound proves" in text


def test_slow_medians_are_named_with_their_aims() -> None:
    timings = [
        {"what": "phase 1, x, budget 0", "num_nodes": 256, "p50_ms": 8.0},
        {"what": "repair, one left", "num_nodes": 1000, "p50_ms": 6.0},
        {"what": "repair, one left", "num_nodes": 256, "p50_ms": 60.0},
    ]
    text = speed_section("| what | nodes |\n|---|---|\n| x | 1 |\n" + json.dumps(timings))
    assert text.endswith("1 of 2 met. Missed: repair, one left, 1000 nodes: 6.00 ms (aim 5 ms).")
