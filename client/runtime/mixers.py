"""The recurrent half of hybrid models: gated delta rules, state spaces and short convolutions, over ragged rows.

transformers calls such a module a mixer. Its own forward is kept, but it cannot tell sessions apart: its convolution
and its state run along the rows. So it is called once for all sessions with a single row, and once for each chunk of a
prompt, each time with a stand-in for transformers' Cache that holds these sessions' states.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from client.runtime.errors import UnsupportedArchitectureError

MIXER_MARK = ".update_conv_state("
"""In the source of every mixer's class, and in that of no attention's."""
CACHE_NAMES = ("cache_params", "past_key_values")


class States:
    """What a mixer takes for transformers' Cache: the states of one layer, for the sessions of one call.

    `conv` [sessions, channels, kernel size] and `recurrent` [sessions, ...]; None: nothing was computed yet, or the
    mixer keeps no such state. A mixer replaces them, or writes into them."""

    def __init__(self, conv: Tensor | None = None, recurrent: Tensor | None = None) -> None:
        self.conv = conv
        self.recurrent = recurrent

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """As transformers' Cache."""
        _check_only(state_idx)
        return self.conv

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """As transformers' Cache."""
        _check_only(state_idx)
        return self.recurrent

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None
    ) -> Tensor:
        """The rows [sessions, channels, rows] behind those before them; the last ones are kept."""
        _check_only(state_idx)
        assert conv_kernel_size is not None, "a mixer says how wide its convolution is"
        before = self.conv
        if before is None:
            before = conv_states.new_zeros(*conv_states.shape[:-1], conv_kernel_size)
        rows = torch.cat([before, conv_states], dim=-1)
        self.conv = rows[..., -conv_kernel_size:]
        return rows

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """As transformers' Cache."""
        _check_only(state_idx)
        self.recurrent = recurrent_states
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        """As transformers' Cache, which can keep rows for taking back guessed tokens."""
        return False


def _check_only(state_idx: int) -> None:
    assert state_idx == 0, "a layer has one state of a kind"


class Mixing(Protocol):
    """What stands behind the mixers during a forward."""

    def mix(self, mixer: Mixer, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        """[1, rows, hidden size] of hidden states [1, rows, hidden size]; `options` are the call's other arguments."""


_current = threading.local()


@contextmanager
def mixing(step: Mixing) -> Iterator[None]:
    """During this block, mixers that are called in this thread work on the states of `step`."""
    _current.step = step
    try:
        yield
    finally:
        del _current.step


class Mixer:
    """In place of a module's forward, which is still the one that computes."""

    def __init__(self, module: Any, cache_name: str) -> None:
        self.layer = int(module.layer_idx)
        self._forward = module.forward
        self._cache_name = cache_name

    def __call__(self, hidden_states: Tensor, **options: Any) -> Tensor:
        """As the module's forward, for rows of any sessions."""
        step: Mixing = _current.step
        options.pop(self._cache_name, None)
        return step.mix(self, hidden_states, options)

    def compute(self, hidden: Tensor, states: States) -> Tensor:
        """The module's own forward over [sessions, rows, hidden size]: as many rows of each session."""
        found: Tensor = self._forward(hidden_states=hidden, **{self._cache_name: states})
        return found


def adopt_mixers(layers: Sequence[nn.Module]) -> bool:
    """Replace the forward of every mixer in `layers`, unless that was done before. False if there is none."""
    modules: list[Any] = [module for layer in layers for module in layer.modules()]
    found = [(module, name) for module in modules if (name := _cache_name(module.__class__))]
    for module, name in found:
        if not isinstance(module.forward, Mixer):
            module.forward = Mixer(module, name)
    return bool(found)


@cache
def _cache_name(kind: Any) -> str | None:
    """What a mixer calls its cache; None if a module of this class is no mixer."""
    if not kind.__module__.startswith("transformers.") or MIXER_MARK not in inspect.getsource(kind):
        return None
    parameters = inspect.signature(kind.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one layer keeps per session, as tensors without memory: [1, channels, kernel size] and [1, ...]."""

    layer: int
    conv: Tensor | None
    recurrent: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(state.nbytes for state in (self.conv, self.recurrent) if state is not None)


class StateProbe:
    """Records what each mixer would keep, by having it compute a new session's first row."""

    def __init__(self, model_type: str) -> None:
        self._model_type = model_type
        self._shapes: dict[int, StateShape] = {}

    @property
    def shapes(self) -> tuple[StateShape, ...]:
        return tuple(self._shapes[layer] for layer in sorted(self._shapes))

    def mix(self, mixer: Mixer, hidden: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Raises UnsupportedArchitectureError if the mixer looks at more than its rows and states."""
        if mixer.layer in self._shapes:
            raise UnsupportedArchitectureError(self._model_type, "a layer has more than one recurrent state")
        if any(isinstance(value, Tensor) for value in options.values()):
            raise UnsupportedArchitectureError(self._model_type, "a recurrent layer looks at more than its rows")
        states = States()
        output = mixer.compute(hidden, states)
        self._shapes[mixer.layer] = StateShape(mixer.layer, _as_meta(states.conv), _as_meta(states.recurrent))
        return output


def _as_meta(state: Tensor | None) -> Tensor | None:
    return None if state is None else torch.empty_like(state, device="meta")
