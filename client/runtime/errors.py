"""What can go wrong in a worker.

WorkerError                           `code` goes to the agent, str() is one sentence without content
+-- UnsupportedArchitectureError      a model family this build cannot cut or cache; found before weights are read
+-- BadConfigError                    config.json is not a model's configuration
+-- BadWeightsError                   a tensor is missing, misshapen or unreadable
+-- DeviceMemoryError                 weights, KV pool or a forward do not fit
+-- InternalError                     a bug here or below; the log has the traceback
+-- SessionError                      one session cannot open or go on, the others can
    +-- NoSliceError, WrongStageError, StaleEpochError, SliceReplacedError
    +-- KvFullError, BadTokenError, NonFiniteError
ChannelClosedError                    the agent is gone: the worker ends
"""

from __future__ import annotations

import torch

OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch's CPU allocators say it, on Linux and on Windows, in a plain RuntimeError (c10/core/impl/alloc_cpu.cpp)."""


class ChannelClosedError(Exception):
    """The agent closed its end of the socket."""


class WorkerError(Exception):
    """Something failed and the worker lives on. `code` is stable, the sentence is for people."""

    code = "internal"


class UnsupportedArchitectureError(WorkerError):
    code = "unsupported_architecture"

    def __init__(self, model_type: str, reason: str) -> None:
        super().__init__(model_type, reason)
        self.model_type = model_type
        self.reason = reason

    def __str__(self) -> str:
        return f"models of type {self.model_type!r} cannot be served by layers yet: {self.reason}"


class BadConfigError(WorkerError):
    code = "bad_config"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the model's configuration is not usable: {self.detail}"


class BadWeightsError(WorkerError):
    code = "bad_weights"

    def __init__(self, tensor: str, detail: str) -> None:
        super().__init__(tensor, detail)
        self.tensor = tensor
        self.detail = detail

    def __str__(self) -> str:
        return f"tensor {self.tensor!r} of the checkpoint is not usable: {self.detail}"


class DeviceMemoryError(WorkerError):
    code = "out_of_memory"

    def __str__(self) -> str:
        return "the device's memory does not hold this"


class InternalError(WorkerError):
    code = "internal"

    def __init__(self, cause: type[BaseException]) -> None:
        super().__init__(cause.__name__)
        self.cause = cause

    def __str__(self) -> str:
        return f"unexpected {self.cause.__name__} in the worker; its log says where"


class SessionError(WorkerError):
    """One session cannot open or go on."""


class NoSliceError(SessionError):
    code = "no_slice"

    def __str__(self) -> str:
        return "this worker holds no layers yet"


class WrongStageError(SessionError):
    code = "wrong_stage"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"the session does not fit the layers held here: {self.detail}"


class StaleEpochError(SessionError):
    code = "stale_epoch"

    def __init__(self, epoch: int, current: int) -> None:
        super().__init__(epoch, current)
        self.epoch = epoch
        self.current = current

    def __str__(self) -> str:
        return f"epoch {self.epoch} of this session is over, the current one is {self.current}"


class NothingKeptError(SessionError):
    code = "nothing_kept"

    def __init__(self, num_wanted: int) -> None:
        super().__init__(num_wanted)
        self.num_wanted = num_wanted

    def __str__(self) -> str:
        return f"the first {self.num_wanted} rows of this session are not kept here, or not as they were sent"


class SliceReplacedError(SessionError):
    code = "slice_replaced"

    def __str__(self) -> str:
        return "the layers that served this session were replaced by others"


class KvFullError(SessionError):
    code = "kv_full"

    def __init__(self, num_wanted: int, num_free: int) -> None:
        super().__init__(num_wanted, num_free)
        self.num_wanted = num_wanted
        self.num_free = num_free

    def __str__(self) -> str:
        return f"room for {self.num_wanted} tokens is needed, {self.num_free} are free"


class BadTokenError(SessionError):
    code = "bad_token"

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.vocab_size = vocab_size

    def __str__(self) -> str:
        return f"a token id is outside the vocabulary of {self.vocab_size}"


class NonFiniteError(SessionError):
    code = "non_finite"

    def __str__(self) -> str:
        return "the model's output is not a finite number"


def as_fault(error: Exception) -> WorkerError:
    """The fault to report for any exception out of torch, transformers or this package."""
    if isinstance(error, WorkerError):
        return error
    if is_out_of_memory(error):
        return DeviceMemoryError()
    return InternalError(type(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def first_line(error: BaseException) -> str:
    """Type and first line of an exception: compilers' messages go on for pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
