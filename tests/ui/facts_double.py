"""Tells facts about no machine, or fails: what `decentllm node facts` may do."""

from __future__ import annotations

import sys

from client.facts import DeviceFacts, Facts, encode_facts

FACTS = Facts(
    devices=(DeviceFacts("NVIDIA GeForce RTX 4090", 24 * 2**30),),
    runtime_ready=False,
    runtime_bytes=2_900_000_000,
    runtime_folder="/home/ada/.local/share/decentllm/runtime",
    weights_folder="/home/ada/.local/share/decentllm/weights",
    free_disk_bytes=81_000_000_000,
)

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--fail", *_]:
            sys.exit(2)
        case ["--garbage", *_]:
            sys.stdout.buffer.write(b"\xff{]" * 10)
        case _:
            sys.stdout.buffer.write(b"a driver says hello\n" + encode_facts(FACTS))
