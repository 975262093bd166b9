"""Which models' weights make room for others: oldest used first, and never what is in use. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from client.errors import DiskFullError

RESERVE_BYTES = 2 * 2**30
"""Stays free on a volunteer's disk, whatever the limit: a disk that is full to the last byte stops other programs."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model on disk: how much space it takes, and when its weights were last asked for."""

    digest: str
    used_bytes: int
    used_s: float


@dataclass(frozen=True, slots=True)
class Room:
    """`quota_bytes` is for all weights together; `used_bytes` of it are taken, `free_bytes` are left on the disk."""

    quota_bytes: int
    used_bytes: int
    free_bytes: int

    def lacks(self, need_bytes: int) -> int:
        """How many bytes are to be given up so that `need_bytes` more fit; none if it is 0 or less."""
        over_quota = self.used_bytes + need_bytes - self.quota_bytes
        return max(over_quota, need_bytes + RESERVE_BYTES - self.free_bytes)


def to_evict(kept: Sequence[Kept], in_use: Collection[str], need_bytes: int, room: Room) -> tuple[str, ...]:
    """The models to be removed before `need_bytes` are downloaded. Raises DiskFullError if that would not do."""
    lacking = room.lacks(need_bytes) if need_bytes else 0
    chosen = []
    for model in sorted(kept, key=lambda model: (model.used_s, model.digest)):
        if lacking > 0 and model.digest not in in_use and model.used_bytes:
            chosen.append(model.digest)
            lacking -= model.used_bytes
    if lacking > 0:
        raise DiskFullError(_sentence(need_bytes, room), lacking)
    return tuple(chosen)


def disk_filled_up(folder: object, need_bytes: int, free_bytes: int) -> DiskFullError:
    """It happened while the weights came: another program was quicker, or the owner may use less than is free."""
    need = f"; {_size(need_bytes)} are still to come, and {_size(free_bytes)} are free" if need_bytes else ""
    short_bytes = need_bytes + max(0, RESERVE_BYTES - free_bytes) if need_bytes else None
    return DiskFullError(f"The disk of {folder} is full{need}. Make room; what has come is kept.", short_bytes)


def _sentence(need_bytes: int, room: Room) -> str:
    need = f"The weights need {_size(need_bytes)} more disk space"
    if room.used_bytes + need_bytes > room.quota_bytes:
        return f"{need}, and this node may keep {_size(room.quota_bytes)} of weights in all."
    return f"{need}; {_size(room.free_bytes)} are free, and {_size(RESERVE_BYTES)} stay free."


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.0f} MB"
