"""How often an address may try keys and links that are not good. Pure: time is an argument, memory is bounded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

NUM_ATTEMPTS = 10
PER_S = 60.0
MAX_ADDRESSES = 10_000
"""Whoever has more addresses than this is not held up by counting them."""


@dataclass(slots=True)
class _Bucket:
    """`level` attempts were left at `at_s`."""

    level: float
    at_s: float


class Throttle:
    """A token bucket for each address: `num_attempts` at once, and as many in PER_S.

    An attempt is taken before it is looked at and given back when it was good: attempts that run side by side cannot
    slip through together."""

    def __init__(self, max_addresses: int = MAX_ADDRESSES, num_attempts: int = NUM_ATTEMPTS) -> None:
        self._max_addresses = max_addresses
        self._num_attempts = float(num_attempts)
        self._buckets: dict[str, _Bucket] = {}

    def take(self, address: str, now_s: float) -> float:
        """0.0: the attempt may be made. Otherwise the seconds until one may."""
        network = network_of(address)
        bucket = self._bucket(network, now_s)
        if bucket.level < 1.0:
            return self._until_one(bucket)
        bucket.level -= 1.0
        self._keep(network, bucket)
        return 0.0

    def wait_s(self, address: str, now_s: float) -> float:
        """What `take` would say, without an attempt."""
        bucket = self._bucket(network_of(address), now_s)
        return self._until_one(bucket) if bucket.level < 1.0 else 0.0

    def give_back(self, address: str, now_s: float) -> None:
        """The attempt was good and counts for nothing."""
        network = network_of(address)
        bucket = self._bucket(network, now_s)
        bucket.level = min(self._num_attempts, bucket.level + 1.0)
        if bucket.level >= self._num_attempts:
            self._buckets.pop(network, None)

    def __len__(self) -> int:
        return len(self._buckets)

    def _bucket(self, network: str, now_s: float) -> _Bucket:
        bucket = self._buckets.get(network) or _Bucket(self._num_attempts, now_s)
        gained = max(0.0, now_s - bucket.at_s) * self._num_attempts / PER_S
        bucket.level, bucket.at_s = min(self._num_attempts, bucket.level + gained), now_s
        return bucket

    def _until_one(self, bucket: _Bucket) -> float:
        return (1.0 - bucket.level) * PER_S / self._num_attempts

    def _keep(self, network: str, bucket: _Bucket) -> None:
        """The latest is last, so that the first is the one to forget."""
        self._buckets.pop(network, None)
        while len(self._buckets) >= self._max_addresses:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[network] = bucket


def network_of(address: str) -> str:
    """What counts as one address: an IPv6 host has a /64 to itself (RFC 4291, section 2.5.4) and may use all of it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if ip.version == 6 and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((int(ip), 64), strict=False))
