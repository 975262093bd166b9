"""Linear layers that multiply the same input, computed as one product: fewer and larger reads of memory.

Which ones do is seen in a forward, not known by name: query, key and value projections, gate and up, the two latent
projections of MLA. The first of a group computes for all and the others take their part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from client.runtime.packed_layers import PackedLinear

KINDS = (nn.Linear, PackedLinear)
"""Exactly these: what is derived from them may compute something else."""


@dataclass
class _Seen:
    """The calls of a module's own linear layers in one forward: (name, input), in order."""

    parent: nn.Module
    calls: list[tuple[str, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Linear layers of one module that were called in this order with the same input."""

    parent: nn.Module
    names: tuple[str, ...]


class _Parts:
    """What the leader of a group has computed for the others, until they take it."""

    def __init__(self) -> None:
        self.rest: tuple[Tensor, ...] = ()


class LeadingLinear(nn.Module):
    """In place of a group's first layer: the product with all weights."""

    def __init__(self, product: nn.Module, sizes: Sequence[int], parts: _Parts) -> None:
        super().__init__()
        self.product = product
        self.sizes = list(sizes)
        self._parts = parts

    def forward(self, hidden: Tensor) -> Tensor:
        parts = torch.split(self.product(hidden), self.sizes, dim=-1)
        self._parts.rest = parts[1:]
        return parts[0]


class FollowingLinear(nn.Module):
    """In place of a group's other layers: what the first one has computed for it."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self._parts = parts

    def forward(self, hidden: Tensor) -> Tensor:
        own, self._parts.rest = self._parts.rest[0], self._parts.rest[1:]
        return own


@contextmanager
def watching(layers: Sequence[nn.Module]) -> Iterator[list[Group]]:
    """Forwards in this block fill the list, once the block ends, with the groups that they show."""
    found: list[Group] = []
    seen = [_Seen(module) for layer in layers for module in layer.modules()]
    handles = [handle for one in seen for handle in _watch(one)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for one in seen:
        found.extend(_groups(one))


def _watch(seen: _Seen) -> Iterator[Any]:
    for name, child in seen.parent.named_children():
        if type(child) in KINDS:

            def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                seen.calls.append((name, args[0]))

            yield child.register_forward_pre_hook(note)


def _groups(seen: _Seen) -> Iterator[Group]:
    """Runs of calls with the very same tensor, of layers that were called once."""
    names = [name for name, _ in seen.calls]
    runs: list[list[int]] = []
    for index, (_, values) in enumerate(seen.calls):
        if runs and seen.calls[runs[-1][0]][1] is values:
            runs[-1].append(index)
        else:
            runs.append([index])
    for run in runs:
        members = tuple(names[index] for index in run)
        if len(members) > 1 and all(names.count(name) == 1 for name in members) and _is_alike(seen.parent, members):
            yield Group(seen.parent, members)


def _is_alike(parent: nn.Module, names: Sequence[str]) -> bool:
    """Whether the layers' weights can stand in one matrix."""
    return len({_kind(parent.get_submodule(name)) for name in names}) == 1


def _kind(linear: Any) -> tuple[Any, ...]:
    weight = linear.codes if isinstance(linear, PackedLinear) else linear.weight
    kind = linear.kind if isinstance(linear, PackedLinear) else None
    return kind, weight.dtype, weight.device, linear.in_features, linear.bias is None


def fuse(group: Group) -> None:
    """Replace the group's layers. Needs the memory of its weights twice for a moment."""
    linears: list[Any] = [group.parent.get_submodule(name) for name in group.names]
    sizes = [linear.out_features for linear in linears]
    product = PackedLinear.joined(linears) if isinstance(linears[0], PackedLinear) else _joined(linears)
    parts = _Parts()
    first, *others = group.names
    setattr(group.parent, first, LeadingLinear(product, sizes, parts))
    for name in others:
        setattr(group.parent, name, FollowingLinear(parts))


def _joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    with torch.device("meta"):
        num_columns = sum(linear.out_features for linear in linears)
        product = nn.Linear(linears[0].in_features, num_columns, bias=linears[0].bias is not None)
    product.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), requires_grad=False)
    if linears[0].bias is not None:
        product.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return product
