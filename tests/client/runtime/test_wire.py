"""Tensors survive the trip through a frame bit by bit, in every dtype of the wire."""

import pytest
import torch

from client.runtime.wire import WIRE_DTYPES, from_payload, to_payload
from protocol.frames import Frame, FrameKind, Phase, Segment, decode_frame, encode_frame
from protocol.values import SessionId


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_rows_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    width, kind = (1, FrameKind.TOKENS) if dtype is torch.int32 else (8, FrameKind.HIDDEN)
    values = (torch.randn(5, width) * 1000).to(dtype)
    segment = Segment(SessionId("a" * 32), 0, 0, 5, 0, 0, Phase.DECODE)
    frame = Frame(kind, WIRE_DTYPES[dtype], width, (segment,), to_payload(values))
    assert torch.equal(from_payload(decode_frame(encode_frame(frame))), values)


def test_rows_that_lie_scattered_are_sent_in_order() -> None:
    values = torch.arange(12.0).view(3, 4).T
    assert bytes(to_payload(values)) == values.contiguous().numpy().tobytes()


def test_received_rows_can_be_written_to() -> None:
    segment = Segment(SessionId("a" * 32), 0, 0, 1, 0, 0, Phase.DECODE)
    frame = Frame(FrameKind.TOKENS, WIRE_DTYPES[torch.int32], 1, (segment,), bytes(4))
    rows = from_payload(frame)
    rows += 1
    assert (rows.tolist(), bytes(frame.payload)) == ([[1]], bytes(4))
