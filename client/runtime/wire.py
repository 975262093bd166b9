"""Tensors to and from the payload of a data frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.frames import Frame, WireDtype

WIRE_DTYPES = {torch.float32: WireDtype.FLOAT32, torch.float16: WireDtype.FLOAT16, torch.bfloat16: WireDtype.BFLOAT16,
               torch.int32: WireDtype.INT32}  # fmt: skip
TORCH_DTYPES = {wire: dtype for dtype, wire in WIRE_DTYPES.items()}


def to_payload(rows: Tensor) -> memoryview:
    """The bytes of a tensor of any device, row-major. A view where it lies on the CPU already."""
    # By way of uint8: numpy has no bfloat16.
    data: NDArray[np.uint8] = rows.detach().contiguous().cpu().view(torch.uint8).numpy()
    return data.data.cast("B")


def from_payload(frame: Frame) -> Tensor:
    """A frame's rows, [num_rows, row_width], on the CPU."""
    # One copy: torch wants memory that may be written to, and the received bytes are not.
    flat = torch.frombuffer(bytearray(frame.payload), dtype=TORCH_DTYPES[frame.dtype])
    return flat.view(frame.num_rows, frame.row_width)
