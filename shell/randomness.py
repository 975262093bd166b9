"""The system's random numbers: unpredictable, because ids and tickets are made of them."""

from __future__ import annotations

import secrets

_system = secrets.SystemRandom()


class SystemRandom:
    def token_hex(self, num_bytes: int) -> str:
        return secrets.token_hex(num_bytes)

    def below(self, limit: int) -> int:
        return secrets.randbelow(limit)

    def uniform(self, low: float, high: float) -> float:
        return _system.uniform(low, high)
