"""What the coordinator tells people.

    PoolError                    has `code` and a sentence; the API turns it into an OpenAI error object
    +-- RequestRefused           the request cannot be served (now, or ever)
    +-- GenerationFailed         a running answer could not be continued
    +-- StorageUnavailable       what has to be recorded cannot be: the disk is full, or held by another program

Bad input at the API's edge is in coordinator/api/errors.py, models' faults in coordinator/models/errors.py.
"""

from __future__ import annotations


class PoolError(Exception):
    """Base: a code for programs, a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class RequestRefused(PoolError):  # noqa: N818 - reads as what happened
    """The pool does not take the request. `retry_after_s` is None when trying again would not help."""

    def __init__(self, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class GenerationFailed(PoolError):  # noqa: N818 - reads as what happened
    """An answer that had begun cannot go on."""


class StorageUnavailable(PoolError):  # noqa: N818 - reads as what happened
    """`reason` is for the operator's log: the sentence may reach people who have no business with the disk."""

    def __init__(self, reason: str) -> None:
        sentence = "The pool cannot record answers now (its disk is full or busy), so it gives none; try again later."
        super().__init__("storage_unavailable", sentence)
        self.reason = reason
