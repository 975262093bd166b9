"""A program that wants the GPU: `python -m benchmarks.game --seconds 8`. It plays the volunteer's game.

It takes 2 GiB of GPU memory and draws "frames" as fast as it can, each a fixed amount of matrix work. It prints times
(time.monotonic), one per line: when its first kernel was done, then when each frame was.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

FRAME_MATRICES = 12
SIZE = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    seconds = parser.parse_args().seconds
    held = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    left = torch.ones(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    torch.cuda.synchronize()
    print(f"{time.monotonic():.6f}", flush=True)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for _ in range(FRAME_MATRICES):
            torch.matmul(left, left)
        torch.cuda.synchronize()
        print(f"{time.monotonic():.6f}", flush=True)
    return int(held[0].item()) * 0


if __name__ == "__main__":
    sys.exit(main())
