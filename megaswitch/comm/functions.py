"""Collectives with gradients: each forward has its dual as backward.

    name             forward           backward
    copy_to          identity          all-reduce          enter a tensor-parallel region
    reduce_from      all-reduce        identity            leave it
    gather_along     all-gather        reduce-scatter      enter it from split sequences
    scatter_along    reduce-scatter    all-gather          leave it to split sequences
    split_along      own part          all-gather          divide work that all ranks hold alike
    concat_along     all-gather        own part            its opposite
    exchange         all-to-all        all-to-all          tokens to experts and back

All are the identity on an axis of size 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_gather, all_reduce, all_to_all, own_part, reduce_scatter
from megaswitch.topology.topology import Axis

_Map = Callable[[Tensor], Tensor]


class _Dual(torch.autograd.Function):
    """A linear map and the map that its gradient goes back through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: _Map, backward: _Map) -> Tensor:
        ctx.back = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None


def _dual(x: Tensor, axis: Axis, forward: _Map, backward: _Map) -> Tensor:
    if axis.size == 1:
        return x
    out: Tensor = _Dual.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return out


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """`x`, which all ranks hold alike; gradients, of which each rank has a part, are summed."""
    return _dual(x, axis, _same, lambda grad: all_reduce(grad, axis))


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """The sum of `x` over the axis; its gradient, which all ranks hold alike, passes unchanged."""
    return _dual(x, axis, lambda x: all_reduce(x, axis), _same)


def gather_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The parts of all ranks along `dim`; gradients are summed and cut again."""
    return _dual(x, axis, lambda x: all_gather(x, axis, dim), lambda grad: reduce_scatter(grad, axis, dim))


def scatter_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of the sum; gradients are gathered."""
    return _dual(x, axis, lambda x: reduce_scatter(x, axis, dim), lambda grad: all_gather(grad, axis, dim))


def split_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of what all ranks hold alike; gradients are gathered."""
    return _dual(x, axis, lambda x: own_part(x, axis, dim).contiguous(), lambda grad: all_gather(grad, axis, dim))


def concat_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The parts of all ranks along `dim`, from then on held alike; the gradient's own part goes back."""
    return _dual(x, axis, lambda x: all_gather(x, axis, dim), lambda grad: own_part(grad, axis, dim).contiguous())


def exchange(x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Rows to other ranks, `send[i]` to rank i and `receive[i]` from it; gradients travel back."""
    return _dual(
        x, axis, lambda x: all_to_all(x, axis, send, receive), lambda grad: all_to_all(grad, axis, receive, send)
    )
