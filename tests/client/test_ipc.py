"""Agent <-> worker packets: the same however the stream is cut, and one error for everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import ipc
from protocol.values import (
    BatchTime,
    LayerBenchmark,
    LayerRange,
    Sampling,
    StepTiming,
    StopRule,
    TokenLogprobs,
    Variant,
)

SESSION = "1" * 32
TO_WORKER: tuple[ipc.AgentMessage, ...] = (
    ipc.MeasureLayers("{}", Variant.BFLOAT16, (1, 8), 64),
    ipc.PlanSlice('{"é": 1}', LayerRange(0, 3), ("a", "b")),
    ipc.LoadSlice("/a folder/☃", LayerRange(2, 3), Variant.FLOAT32, 10**12),
    ipc.StartSession(SESSION, 1, 0, 2, 7, 64, 3, 1, Sampling(0.5, 0.9, 40, 7), StopRule(100, (2,)), (1, 2, 3)),
    ipc.StartSession(SESSION, 1, 0, 1, 7, 64, None, 0),
    ipc.StartSession(SESSION, 1, 0, 1, 40, 64, None, 0, prefix_hashes=(SESSION, "2" * 32)),
    ipc.EndSession(SESSION, 4),
    ipc.EndSession(SESSION, 4, (SESSION, "2" * 32)),
    ipc.AreYouThere(),
)
TO_AGENT: tuple[ipc.WorkerMessage, ...] = (
    ipc.WorkerReady(ipc.IPC_VERSION, "2.13", "cpu", 10**10),
    ipc.LayersMeasured(LayerBenchmark((BatchTime(1, 0.1),), 0.2, 0.3)),
    ipc.SlicePlanned(("a", "b")),
    ipc.LoadProgress(1, 2),
    ipc.SliceLoaded(1000, 10**9, True, has_prefix_cache=True),
    ipc.CommandFailed("out_of_memory", "No."),
    ipc.SessionStarted(SESSION, 1, 32),
    ipc.SessionFailed(SESSION, 1, "kv_full", "No."),
    ipc.Sampled(SESSION, 1, 9, (5, 6), None, StepTiming(1, 2)),
    ipc.Sampled(SESSION, 1, 9, (5,), None, StepTiming(1, 2), (TokenLogprobs(-0.5, ((5, -0.5),)),)),
    ipc.WorkDone(30, 55, 512, 0.75),
    ipc.Here(),
    ipc.NoMemory(4096, 2),
)


def _packed(packets: Sequence[ipc.WorkerMessage | ipc.FramePacket]) -> bytes:
    return b"".join(
        ipc.pack_frame(p.link, p.data) if isinstance(p, ipc.FramePacket) else ipc.pack_message(p) for p in packets
    )


_frames = st.builds(ipc.FramePacket, st.integers(0, 2**32 - 1), st.binary(max_size=200))


@given(st.lists(st.sampled_from(TO_AGENT) | _frames, max_size=8), st.data())
def test_any_cut_of_the_stream_gives_the_same_packets(
    packets: list[ipc.WorkerMessage | ipc.FramePacket], data: st.DataObject
) -> None:
    stream = _packed(packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, received = ipc.PacketReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.from_worker(stream[start:stop])
    assert received == packets


def test_every_message_to_the_worker_arrives_as_it_was_sent_byte_by_byte() -> None:
    stream = b"".join(map(ipc.pack_message, TO_WORKER))
    reader = ipc.PacketReader()
    received = [packet for byte in stream for packet in reader.from_agent(bytes([byte]))]
    assert received == list(TO_WORKER)


@given(st.binary(max_size=400))
def test_garbage_gives_ipc_error_and_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(ipc.IpcError):
        list(ipc.PacketReader().from_worker(garbage))


@given(st.binary(max_size=200))
def test_a_garbage_message_gives_ipc_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ipc.IpcError):
        list(ipc.PacketReader().from_agent(ipc.PACKET.pack(len(body), 0, 0) + body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"type":"commandfailed","code":"\xff","message":""}',
        b'{"type":"commandfailed","code":"\\ud800","message":""}',
        b'{"type":"endsession","session_id":"x","epoch":0}',
        b'{"type":"sliceplanned","tensor_names":[],"more":1}',
        b'{"type":"loadprogress","done_bytes":-1,"total_bytes":1}',
        b'{"type":"worker"}',
        b"null",
    ],
)
def test_a_message_that_cannot_be_read_is_an_ipc_error(body: bytes) -> None:
    with pytest.raises(ipc.IpcError, match="not understood"):
        list(ipc.PacketReader().from_worker(ipc.PACKET.pack(len(body), 0, 0) + body))


def test_a_message_of_the_wrong_direction_is_an_ipc_error() -> None:
    with pytest.raises(ipc.IpcError):
        list(ipc.PacketReader().from_worker(ipc.pack_message(TO_WORKER[0])))


@pytest.mark.parametrize("kind", [0, 1])
def test_an_oversized_packet_is_refused_before_its_body_arrives(kind: int) -> None:
    header = ipc.PACKET.pack(ipc.MAX_BODY_BYTES + 1, kind, 0)
    with pytest.raises(ipc.IpcError, match=str(ipc.MAX_BODY_BYTES + 1)):
        list(ipc.PacketReader().from_worker(header))


def test_a_packet_of_exactly_the_largest_size_is_awaited() -> None:
    assert list(ipc.PacketReader().from_worker(ipc.PACKET.pack(ipc.MAX_BODY_BYTES, 1, 0) + b"x")) == []


def test_an_unknown_kind_of_packet_is_refused() -> None:
    with pytest.raises(ipc.IpcError, match="kind 2"):
        list(ipc.PacketReader().from_worker(ipc.PACKET.pack(0, 2, 0)))


def test_packets_before_the_bad_one_are_delivered() -> None:
    packets = ipc.PacketReader().from_worker(ipc.pack_message(TO_AGENT[0]) + b"\xff" * ipc.PACKET.size)
    assert next(packets) == TO_AGENT[0]
    with pytest.raises(ipc.IpcError):
        next(packets)


def test_a_frame_keeps_its_link_and_its_bytes() -> None:
    (packet,) = ipc.PacketReader().from_worker(ipc.pack_frame(77, b"raw"))
    assert packet == ipc.FramePacket(77, b"raw")
