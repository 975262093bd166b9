"""What is asked of each model: how long prompts and answers are, and how many tokens per second people want."""

from __future__ import annotations

import math

from coordinator.scheduler.cost import Workload

ENOUGH_REQUESTS = 8
"""Before so many the prior stands: two long prompts say little of the third."""
PRIOR_ANSWERS = 200.0
"""The prior counts like so many answers: those that end first are the short ones, and say little of the others."""
LEAST_WEIGHT = 0.02
"""Of the newest request in the averages, so that they follow the last fifty or so."""
RATE_WINDOW_S = 300.0
"""Requests count towards the rate with e^(-age / window)."""
LEAST_WINDOW_S = 60.0
"""A burst within the first seconds is not taken for what goes on."""
PEAK_HALF_LIFE_S = 3600.0
"""The highest rate is remembered this way: to move layers for a quiet minute would cost more than it saves."""

DEFAULT_WORKLOAD = Workload()


class _Mean:
    """Of all values at first, then of the latest."""

    def __init__(self) -> None:
        self.num = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.num += 1
        self.value += max(1 / self.num, LEAST_WEIGHT) * (value - self.value)

    def or_else(self, prior: float) -> float:
        return self.value if self.num else prior

    def beside(self, prior: float, worth: float) -> float:
        """With a prior that counts like so many values."""
        return prior + (self.value - prior) * self.num / (self.num + worth)


class _Seen:
    """Of one model."""

    def __init__(self, now_s: float) -> None:
        self.num_requests = 0
        self.prompt, self.reserved, self.answer = _Mean(), _Mean(), _Mean()
        self._first_s = self._last_s = now_s
        self._recent = 0.0
        """Requests, each with what its age leaves of it."""
        self._peak_per_s = 0.0

    def request(self, now_s: float) -> None:
        self.pass_time(now_s)
        self.num_requests += 1
        self._recent += 1.0
        self._peak_per_s = max(self._peak_per_s, self._rate_per_s())

    def pass_time(self, now_s: float) -> None:
        age_s = max(0.0, now_s - self._last_s)
        self._recent *= math.exp(-age_s / RATE_WINDOW_S)
        self._peak_per_s *= 0.5 ** (age_s / PEAK_HALF_LIFE_S)
        self._last_s = max(self._last_s, now_s)

    def _rate_per_s(self) -> float:
        """The window is not longer than the model has been asked for."""
        known_s = max(LEAST_WINDOW_S, self._last_s - self._first_s)
        return self._recent / (RATE_WINDOW_S * (1 - math.exp(-known_s / RATE_WINDOW_S)))

    def requests_per_s(self) -> float:
        """The rate now, or what is left of the highest."""
        return max(self._rate_per_s(), self._peak_per_s)


class Workloads:
    """Per model, by its manifest. Time never goes back; without requests it is whatever was passed last."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._priors: dict[str, Workload] = {}
        self._now_s = 0.0

    def set_prior(self, manifest_hash: str, prior: Workload) -> None:
        """What to reckon with until enough requests were seen."""
        self._priors[manifest_hash] = prior

    def seen(self, manifest_hash: str, num_prompt_tokens: int, num_reserved_tokens: int, now_s: float) -> None:
        """Somebody asked. A length of 0 is one that is not known."""
        self._now_s = max(self._now_s, now_s)
        seen = self._seen.setdefault(manifest_hash, _Seen(self._now_s))
        seen.request(self._now_s)
        if num_prompt_tokens > 0:
            seen.prompt.add(num_prompt_tokens)
        if num_reserved_tokens > 0:
            seen.reserved.add(num_reserved_tokens)

    def answered(self, manifest_hash: str, num_answer_tokens: int, now_s: float) -> None:
        """A request ended with so many tokens. None at all is a failure and says nothing of lengths."""
        self._now_s = max(self._now_s, now_s)
        seen = self._seen.get(manifest_hash)
        if seen is not None and num_answer_tokens > 0:
            seen.answer.add(num_answer_tokens)

    def workload(self, manifest_hash: str) -> Workload:
        """What was seen, or the prior. Wanted tokens are those of arriving requests, served or not."""
        prior = self._priors.get(manifest_hash, DEFAULT_WORKLOAD)
        seen = self._seen.get(manifest_hash)
        if seen is None or seen.num_requests < ENOUGH_REQUESTS:
            return prior
        seen.pass_time(self._now_s)
        num_answer_tokens = seen.answer.beside(prior.num_answer_tokens, PRIOR_ANSWERS)
        return Workload(
            num_prompt_tokens=seen.prompt.or_else(prior.num_prompt_tokens),
            num_answer_tokens=num_answer_tokens,
            num_reserved_tokens=seen.reserved.or_else(prior.num_reserved_tokens),
            tokens_per_s=seen.requests_per_s() * num_answer_tokens,
        )
