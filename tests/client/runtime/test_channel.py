"""The channel: packets in any pieces, no deadlock between two busy writers, and an end that is noticed."""

import socket
from collections.abc import Iterator
from time import monotonic
from typing import NamedTuple

import pytest

from client.ipc import EndSession, FramePacket, IpcError, LoadProgress, PacketReader, pack_frame, pack_message
from client.runtime.channel import Channel
from client.runtime.errors import ChannelClosedError
from protocol.frames import decode_frame, encode_frame
from tests.client.runtime.chain import prompt_frame

END = EndSession("a" * 32, 1)


class Pair(NamedTuple):
    agent: socket.socket
    channel: Channel


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(20)
        yield Pair(near, Channel(far))


def test_nothing_arrived_is_an_empty_list(pair: Pair) -> None:
    assert pair.channel.take(wait=False) == []


def test_messages_and_frames_arrive_in_order(pair: Pair) -> None:
    frame = encode_frame(prompt_frame(0, [5, 6]))
    pair.agent.sendall(pack_message(END) + pack_frame(0, frame) + pack_message(END))
    assert pair.channel.take(wait=True) == [END, FramePacket(0, frame), END]


def test_a_packet_in_pieces_arrives_once_it_is_whole(pair: Pair) -> None:
    packet = pack_message(END)
    for cut in range(len(packet) - 1):
        pair.agent.sendall(packet[cut : cut + 1])
        assert pair.channel.take(wait=False) == []
    pair.agent.sendall(packet[-1:])
    assert pair.channel.take(wait=True) == [END]


def test_what_is_sent_can_be_read_by_the_agent(pair: Pair) -> None:
    frame = prompt_frame(0, [5, 6, 7])
    pair.channel.send_message(LoadProgress(1, 2))
    pair.channel.send_frame(9, frame)
    message, packet = PacketReader().from_worker(pair.agent.recv(2**16))
    assert message == LoadProgress(1, 2)
    assert isinstance(packet, FramePacket)
    assert (packet.link, decode_frame(packet.data)) == (9, frame)


def test_sending_more_than_the_socket_holds_does_not_block(pair: Pair) -> None:
    frame = prompt_frame(0, list(range(10_000)))
    size = len(pack_frame(1, encode_frame(frame)))
    for _ in range(50):
        pair.channel.send_frame(1, frame)
    pair.agent.sendall(pack_message(END))  # the agent is busy writing, too
    received = 0
    while received < 50 * size:
        pair.channel.poll()
        received += len(pair.agent.recv(2**20))
    assert received == 50 * size
    assert pair.channel.take(wait=True) == [END]


def test_a_closed_channel_is_noticed_when_waiting(pair: Pair) -> None:
    pair.agent.close()
    with pytest.raises(ChannelClosedError):
        pair.channel.take(wait=True)


def test_a_closed_channel_is_noticed_when_sending(pair: Pair) -> None:
    pair.agent.close()
    with pytest.raises(ChannelClosedError):
        pair.channel.send_message(LoadProgress(1, 2))


def test_a_closed_channel_is_noticed_during_long_work(pair: Pair) -> None:
    pair.channel.poll()
    pair.agent.close()
    with pytest.raises(ChannelClosedError):
        pair.channel.poll()


def test_bytes_that_are_no_packet_are_an_error(pair: Pair) -> None:
    pair.agent.sendall(b"\xff" * 32)
    with pytest.raises(IpcError):
        pair.channel.take(wait=True)


def test_waiting_ends_after_a_while_with_nothing(pair: Pair) -> None:
    begin_s = monotonic()
    assert pair.channel.take(wait=True, at_most_s=0.05) == []
    assert 0.05 <= monotonic() - begin_s < 10
    assert pair.channel.take(wait=True, at_most_s=0.0) == []


def test_waiting_ends_with_the_first_packet(pair: Pair) -> None:
    pair.agent.sendall(pack_message(END))
    assert pair.channel.take(wait=True, at_most_s=60.0) == [END]


def test_half_a_packet_does_not_make_waiting_longer(pair: Pair) -> None:
    pair.agent.sendall(pack_message(END)[:-1])
    assert pair.channel.take(wait=True, at_most_s=0.05) == []
    pair.agent.sendall(pack_message(END)[-1:])
    assert pair.channel.take(wait=True, at_most_s=60.0) == [END]
