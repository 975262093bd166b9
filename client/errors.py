"""What can go wrong on the volunteer's side.

ClientError                 `title` and sentence for people, `code` for the coordinator
+-- JoinError               the pool cannot be joined, and trying again will not help
+-- WeightsError            weights could not be fetched or are not what the manifest says
|   +-- DiskFullError       there is no room for them
+-- WorkerError             the torch worker died or refused
+-- RulesFileError          the file with the rules for pausing cannot be used
"""

from __future__ import annotations


class ClientError(Exception):
    """Base: what happened in a few words, then in one sentence."""

    title = "Something went wrong"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class JoinError(ClientError):
    title = "Cannot join the pool"


class WeightsError(ClientError):
    title = "Cannot get the model's weights"


class DiskFullError(WeightsError):
    """`short_bytes` more are needed; None: nobody knows how many. `share`: what part of the weights that were wanted
    there is room for."""

    def __init__(self, message: str, short_bytes: int | None, share: float | None = None) -> None:
        super().__init__("disk_full", message)
        self.short_bytes = short_bytes
        self.share = share

    def out_of(self, wanted_bytes: int) -> DiskFullError:
        """The same, for weights of so many bytes in all."""
        if self.short_bytes is None or not wanted_bytes:
            return self
        return DiskFullError(self.message, self.short_bytes, max(0.0, 1.0 - self.short_bytes / wanted_bytes))


class WorkerError(ClientError):
    title = "The GPU worker failed"


class RulesFileError(ClientError):
    title = "The rules cannot be used"
