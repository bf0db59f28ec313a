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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megaswitch.comm import collectives
from megaswitch.topology.topology import Axis


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return collectives.all_reduce(grad, ctx.axis), None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return collectives.all_reduce(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return collectives.all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return collectives.reduce_scatter(grad, ctx.axis, ctx.dim), None, None


class _ScatterAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return collectives.reduce_scatter(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return collectives.all_gather(grad, ctx.axis, ctx.dim), None, None


class _SplitAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return collectives.own_part(x, axis, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return collectives.all_gather(grad, ctx.axis, ctx.dim), None, None


class _ConcatAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return collectives.all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return collectives.own_part(grad, ctx.axis, ctx.dim).contiguous(), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.axis, ctx.send, ctx.receive = axis, send, receive
        return collectives.all_to_all(x, axis, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return collectives.all_to_all(grad, ctx.axis, ctx.receive, ctx.send), None, None, None


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """`x`, which all ranks hold alike; gradients, of which each rank has a part, are summed."""
    return x if axis.size == 1 else _apply(_CopyTo, x, axis)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """The sum of `x` over the axis; its gradient, which all ranks hold alike, passes unchanged."""
    return x if axis.size == 1 else _apply(_ReduceFrom, x, axis)


def gather_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The parts of all ranks along `dim`; gradients are summed and cut again."""
    return x if axis.size == 1 else _apply(_GatherAlong, x, axis, dim)


def scatter_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of the sum; gradients are gathered."""
    return x if axis.size == 1 else _apply(_ScatterAlong, x, axis, dim)


def split_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of what all ranks hold alike; gradients are gathered."""
    return x if axis.size == 1 else _apply(_SplitAlong, x, axis, dim)


def concat_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The parts of all ranks along `dim`, from then on held alike; the gradient's own part goes back."""
    return x if axis.size == 1 else _apply(_ConcatAlong, x, axis, dim)


def exchange(x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Rows to other ranks, `send[i]` to rank i and `receive[i]` from it; gradients travel back."""
    return x if axis.size == 1 else _apply(_Exchange, x, axis, send, receive)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    out: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return out
