"""How long prompts and answers are: lognormal, with the means or medians that traces were published with.

| name | prompt | answer | source |
|---|---|---|---|
| sharegpt | mean 161 | mean 338 | Kwon et al. 2023 (vLLM), section 6.1, figure 11 |
| lmsys-chat | mean 69.5 | mean 214.5 | Zheng et al. 2024 (LMSYS-Chat-1M), table 1 |
| azure-conversation | median 1020 | median 129 | Patel et al. 2024 (Splitwise), section 3.1 |
| arxiv-summary | median 7059, p90 12985 | median 208, p90 371 | Agrawal et al. 2024 (Sarathi-Serve), table 2 |

Where a source gives only one figure the spread (sigma of the logarithm) is ours: 1.2 for prompts, 0.9 for answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

PROMPT_SIGMA, ANSWER_SIGMA = 1.2, 0.9
P90 = 1.2816
"""The normal distribution's 90th percentile."""


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Whole numbers of tokens, from `least` to `most`."""

    median: float
    sigma: float
    most: int
    least: int = 4

    @property
    def mean(self) -> float:
        """Of samples, but for rounding."""
        return _cut_mean(self.median, self.sigma, self.least, self.most)

    def sample(self, num: int, rng: Generator) -> NDArray[np.int64]:
        values = self.median * np.exp(self.sigma * rng.standard_normal(num))
        return np.clip(np.rint(values), self.least, self.most).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Lengths:
    """`answer.most` is also what users ask for at most: the KV room that a request reserves beyond its prompt."""

    prompt: Lognormal
    answer: Lognormal


def with_mean(mean: float, sigma: float, most: int) -> Lognormal:
    """So that the mean within [least, most] is the published one: found by bisection, as the cut moves it."""
    low, high = 1.0, 4.0 * mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cut_mean(middle, sigma, 4, most) < mean else (low, middle)
    return Lognormal(high, sigma, most)


def _cut_mean(median: float, sigma: float, least: int, most: int) -> float:
    """Mean of a lognormal whose values beyond the limits are moved to them."""
    low, high = (math.log(edge / median) / sigma for edge in (least, most))
    inner = median * math.exp(sigma**2 / 2) * (_below(high - sigma) - _below(low - sigma))
    return least * _below(low) + inner + most * (1.0 - _below(high))


def _below(value: float) -> float:
    """The standard normal distribution's function."""
    return 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


LENGTHS: dict[str, Lengths] = {
    "sharegpt": Lengths(with_mean(161.31, PROMPT_SIGMA, 1024), with_mean(337.99, ANSWER_SIGMA, 1024)),
    "lmsys-chat": Lengths(with_mean(69.5, PROMPT_SIGMA, 1024), with_mean(214.5, ANSWER_SIGMA, 1024)),
    "azure-conversation": Lengths(Lognormal(1020, PROMPT_SIGMA, 8192), Lognormal(129, ANSWER_SIGMA, 1024)),
    "arxiv-summary": Lengths(
        Lognormal(7059, math.log(12_985 / 7059) / P90, 16_384), Lognormal(208, math.log(371 / 208) / P90, 512)
    ),
}
