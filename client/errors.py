"""What can go wrong on the volunteer's side.

ClientError                 `title` and sentence for people, `code` for the coordinator
+-- JoinError               the pool cannot be joined, and trying again will not help
+-- WeightsError            weights could not be fetched or are not what the manifest says
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


class WorkerError(ClientError):
    title = "The GPU worker failed"


class RulesFileError(ClientError):
    title = "The rules cannot be used"
