"""A worker without torch: a real child process that speaks client.ipc over the inherited socket, as told by `play`.

    python worker_program.py good --channel 5 --device cpu

good        answers every command; a frame comes back on link 0; a StartSession is answered with SessionStarted
silent      never says anything          garbage    says what is no packet
other       says it is of another build  short      ends with status 3 at once
stubborn    closes its socket and lives on           deaf  ready, then reads no more
no-load     fails every LoadSlice        die-on-load   ends with status 4 at a LoadSlice
bad-link    ready, then sends a frame to a link that was never given
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time

from client import ipc
from protocol.values import BatchTime, LayerBenchmark

HELD = ipc.SliceLoaded(1000, 3_000_000, True)
BENCHMARK = LayerBenchmark((BatchTime(1, 0.001),), 0.0001, 0.002)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("play")
    parser.add_argument("-m", dest="module")
    parser.add_argument("--channel", type=int)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    channel = socket.socket(fileno=arguments.channel)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only a kill ends a worker that is at work
    start(arguments.play, channel)
    serve(arguments.play, channel)


def start(play: str, channel: socket.socket) -> None:
    version = ipc.IPC_VERSION + (play == "other")
    if play == "short":
        sys.exit(3)
    if play == "stubborn":
        channel.close()
    if play == "garbage":
        channel.sendall(b"\xff" * 64)
    if play in ("silent", "stubborn", "garbage"):
        time.sleep(600)
    device_name = f"{os.getpid()} {os.environ.get('CUDA_DEVICE_ORDER', '')}"
    channel.sendall(ipc.pack_message(ipc.WorkerReady(version, "none", device_name, 10**9)))
    if play == "deaf":
        time.sleep(600)
    if play == "bad-link":
        channel.sendall(ipc.pack_frame(7, b"frame"))


def serve(play: str, channel: socket.socket) -> None:
    reader = ipc.PacketReader()
    while data := channel.recv(2**20):
        for packet in reader.from_agent(data):
            for answer in answers(play, packet):
                channel.sendall(answer)


def answers(play: str, packet: ipc.AgentMessage | ipc.FramePacket) -> list[bytes]:
    match packet:
        case ipc.FramePacket(data=data):
            return [ipc.pack_frame(0, data)]
        case ipc.MeasureLayers():
            return [ipc.pack_message(ipc.LayersMeasured(BENCHMARK))]
        case ipc.PlanSlice(layers=layers):
            names = tuple(f"model.layers.{n}.weight" for n in range(layers.start, layers.stop))
            return [ipc.pack_message(ipc.SlicePlanned(names))]
        case ipc.LoadSlice():
            return [ipc.pack_message(message) for message in loaded(play)]
        case ipc.StartSession(session_id=session_id, epoch=epoch):
            return [ipc.pack_message(ipc.SessionStarted(session_id, epoch))]
    return []


def loaded(play: str) -> list[ipc.WorkerMessage]:
    if play == "die-on-load":
        sys.exit(4)
    if play == "no-load":
        return [ipc.CommandFailed("out_of_memory", "The layers do not fit.")]
    return [ipc.LoadProgress(1, 2), HELD]


if __name__ == "__main__":
    main()
