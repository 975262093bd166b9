"""`python -m client.runtime --channel FD --device cpu|cuda:0`: the worker, started by the agent."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads cost a factor when the volunteer uses the machine
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",  # one tensor at a time: bounded memory, honest progress
    "TOKENIZERS_PARALLELISM": "false",
    # Huge pages for what torch allocates on the CPU. A killed process's sockets close after its memory was freed
    # (Linux, do_exit: exit_mm before exit_files), so that this is how long its death goes unnoticed.
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Set before torch and transformers are imported, which read it then. What is set already wins."""


def main() -> int:
    """Exit code 0 once the agent closes the channel, 2 if it speaks another version, 3 if the device is not there."""
    arguments = _arguments()
    logging.basicConfig(stream=sys.stderr, level=arguments.log_level, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the agent; end-of-file ends the worker
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return _serve(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m client.runtime", description=__doc__)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the inherited socket")
    parser.add_argument("--device", required=True, help="cpu or cuda:0")
    parser.add_argument("--pace", default="", help="play slower hardware: STEP_MS,ROW_MS,PREFILL_MS per layer")
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser.parse_args()


def _serve(arguments: argparse.Namespace) -> int:
    import torch
    import transformers

    from client.ipc import IpcError
    from client.pace import parse_pace
    from client.runtime.device import Device, default_num_threads
    from client.runtime.worker import run_worker

    # Beside an accelerator, more than one thread only waits for the others: at copies of a few hundred kilobytes.
    num_threads = default_num_threads() if arguments.device == "cpu" else 1
    torch.set_num_threads(int(os.environ.get("DECENTLLM_THREADS") or num_threads))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with socket.socket(fileno=arguments.channel) as sock:
        try:
            device = Device.open(arguments.device, parse_pace(arguments.pace) if arguments.pace else None)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for this kind of device
            logging.getLogger(__name__).error("device %s does not answer: %s", arguments.device, error)
            return 3
        try:
            run_worker(sock, device)
        except IpcError as error:
            logging.getLogger(__name__).error("the agent is of another build: %s", error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
