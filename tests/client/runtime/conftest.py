"""Torch on one thread, quiet transformers, and tiny checkpoints that are written once per test run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from client.runtime.device import Device
from tests.client.runtime.chain import DEVICE, Chain
from tests.fakes.tiny_models import save_tiny

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU does not capture everything that tests serve, mixtures of experts in float32 for one, and says so."""
    if DEVICE != "cpu":
        for item in items:
            item.add_marker(pytest.mark.allowed_logs("is not captured"))


@pytest.fixture(scope="session")
def device() -> Device:
    return Device.open(DEVICE)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an architecture's tiny model; tests only read it."""
    folders: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = save_tiny(architecture, tmp_path_factory.mktemp(architecture))
        return folders[architecture]

    return folder


@pytest.fixture
def chain(checkpoint: Callable[[str], Path]) -> Iterator[Callable[..., Chain]]:
    """Build a chain of stages in this process. Afterwards every KV pool must add up, and be empty without sessions."""
    chains: list[Chain] = []

    def build(architecture: str = "llama", cuts: tuple[int, ...] = (0, 6), **options: Any) -> Chain:
        chains.append(Chain(checkpoint(architecture), cuts, **options))
        return chains[-1]

    yield build
    for built in chains:
        built.validate()
