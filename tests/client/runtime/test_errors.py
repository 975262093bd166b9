"""Every error has a code that the protocol carries, and a sentence."""

import re
from collections.abc import Iterator

import pytest
import torch

from client.runtime import errors
from client.runtime.device import Device, default_num_threads
from client.runtime.errors import WorkerError, as_fault

SAMPLES = [
    errors.UnsupportedArchitectureError("bloom", "no"),
    errors.BadConfigError("no"),
    errors.BadWeightsError("a.b", "no"),
    errors.DeviceMemoryError(),
    errors.InternalError(KeyError),
    errors.NoSliceError(),
    errors.WrongStageError("no"),
    errors.StaleEpochError(1, 2),
    errors.SliceReplacedError(),
    errors.KvFullError(2, 1),
    errors.BadTokenError(3),
    errors.NonFiniteError(),
    errors.NothingKeptError(7),
]


def subclasses(kind: type[WorkerError]) -> Iterator[type[WorkerError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_is_sampled_here() -> None:
    assert {type(sample) for sample in SAMPLES} == set(subclasses(WorkerError)) - {errors.SessionError}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: error.code)
def test_an_error_has_a_code_and_a_sentence(error: WorkerError) -> None:
    assert re.fullmatch(r"[a-z_]{1,48}", error.code)
    assert 20 < len(str(error)) < 200
    assert as_fault(error) is error


def test_codes_tell_errors_apart() -> None:
    assert len({error.code for error in SAMPLES}) == len(SAMPLES)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_memory_that_ran_out_is_recognised(error: Exception) -> None:
    assert as_fault(error).code == "out_of_memory"


def test_torchs_own_allocator_says_what_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert as_fault(raised.value).code == "out_of_memory"


def test_what_nobody_expected_is_internal_and_says_no_more_than_its_type() -> None:
    fault = as_fault(KeyError("the prompt"))
    assert (fault.code, str(fault)) == ("internal", "unexpected KeyError in the worker; its log says where")


def test_a_cpu_has_a_name_and_memory_and_leaves_a_core_to_its_owner() -> None:
    device = Device.open("cpu")
    assert device.name and device.free_bytes() > 0
    assert default_num_threads() >= 1


def test_a_device_that_is_not_there_does_not_open() -> None:
    with pytest.raises(RuntimeError):
        Device.open("nonsense:0")
