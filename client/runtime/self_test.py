"""Does this interpreter work on this device? `python -m client.runtime.self_test`, once, after a runtime was prepared.

Prints one line of JSON and ends with 0, or one sentence and 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

SIZE = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Multiply two matrices on the device and compare with the CPU's result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args(argv).device
    try:
        print(json.dumps(facts_of(device)))  # noqa: T201 - this is the program's output
    except (ImportError, RuntimeError, OSError, AssertionError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}")  # noqa: T201
        return 1
    return 0


def facts_of(device: str) -> dict[str, str]:
    """Versions and the device's name. Raises what torch raises; AssertionError for a wrong product."""
    import torch  # here, so that a library that is missing is one sentence and no traceback
    import transformers

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(SIZE, SIZE, generator=generator) for _ in range(2))
    product = (left.to(device) @ right.to(device)).cpu()
    # TF32 and its like keep 10 bits of mantissa: sums of 256 products of numbers below 1 are good to 0.1 in 64.
    assert torch.allclose(product, left @ right, atol=0.2), "the device multiplies wrongly"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": name}


if __name__ == "__main__":
    sys.exit(main())
