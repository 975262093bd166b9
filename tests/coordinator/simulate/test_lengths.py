"""Samples have the published means, medians and percentiles."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.simulate.lengths import LENGTHS, Lognormal


@pytest.mark.parametrize(("name", "prompt", "answer"), [("sharegpt", 161.31, 337.99), ("lmsys-chat", 69.5, 214.5)])
def test_means_are_the_published_ones(name: str, prompt: float, answer: float) -> None:
    rng = np.random.default_rng(0)
    assert LENGTHS[name].prompt.sample(200_000, rng).mean() == pytest.approx(prompt, rel=0.02)
    assert LENGTHS[name].answer.sample(200_000, rng).mean() == pytest.approx(answer, rel=0.02)


def test_medians_and_ninetieth_percentiles_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    prompts = LENGTHS["arxiv-summary"].prompt.sample(200_000, rng)
    assert np.median(prompts) == pytest.approx(7059, rel=0.02)
    assert np.percentile(prompts, 90) == pytest.approx(12_985, rel=0.02)
    assert np.median(LENGTHS["azure-conversation"].answer.sample(200_000, rng)) == pytest.approx(129, rel=0.03)


def test_no_sample_is_outside_the_limits() -> None:
    values = Lognormal(100, 3.0, 1000, 8).sample(10_000, np.random.default_rng(0))
    assert values.min() == 8
    assert values.max() == 1000
