"""Collectives with gradients: each forward has its dual as backward.

    name             forward           backward
    copy_to          identity          all-reduce          enter a tensor-parallel region
    reduce_from      all-reduce        identity            leave it
    gather_along     all-gather        reduce-scatter      enter it from split sequences
    scatter_along    reduce-scatter    all-gather          leave it to split sequences
    split_along      own part          all-gather          divide work that all ranks hold alike
    concat_along     all-gather        own part            its opposite
    exchange         all-to-all        all-to-all          tokens to experts and back

All are the identity on an axis of size 1. `meanwhile` is called in the backward between the collective's start and
the wait for its result: weight gradients, which nothing waits for, are computed there. `exchange` also returns
before its forward has ended: `Arriving.wait` gives the tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaswitch.comm.collectives import (
    Pending,
    all_gather,
    all_reduce,
    own_part,
    reduce_scatter,
    start_all_gather,
    start_all_reduce,
    start_all_to_all,
    start_reduce_scatter,
)
from megaswitch.topology.topology import Axis

_Start = Callable[[Tensor], Pending]
Meanwhile = Callable[[], None]


def _nothing() -> None:
    """Nothing to do meanwhile."""


class _Dual(torch.autograd.Function):
    """A linear map and the map, begun and waited for, that its gradient goes back through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable[[Tensor], Tensor], back: _Start, meanwhile: Meanwhile) -> Tensor:
        ctx.back, ctx.meanwhile = back, meanwhile
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        pending = ctx.back(grad)
        ctx.meanwhile()
        return pending.wait(), None, None, None


def _dual(
    x: Tensor, axis: Axis, forward: Callable[[Tensor], Tensor], back: _Start, meanwhile: Meanwhile = _nothing
) -> Tensor:
    if axis.size == 1:
        return x
    out: Tensor = _Dual.apply(x, forward, back, meanwhile)  # type: ignore[no-untyped-call]
    return out


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def _at_once(function: Callable[[Tensor], Tensor]) -> _Start:
    return lambda grad: Pending("local", function(grad))


def copy_to(x: Tensor, axis: Axis, meanwhile: Meanwhile = _nothing) -> Tensor:
    """`x`, which all ranks hold alike; gradients, of which each rank has a part, are summed."""
    return _dual(x, axis, _same, lambda grad: start_all_reduce(grad, axis), meanwhile)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """The sum of `x` over the axis; its gradient, which all ranks hold alike, passes unchanged."""
    return _dual(x, axis, lambda x: all_reduce(x, axis), _at_once(_same))


def gather_along(x: Tensor, axis: Axis, dim: int, meanwhile: Meanwhile = _nothing) -> Tensor:
    """The parts of all ranks along `dim`; gradients are summed and cut again."""
    return _dual(
        x, axis, lambda x: all_gather(x, axis, dim), lambda grad: start_reduce_scatter(grad, axis, dim), meanwhile
    )


def scatter_along(x: Tensor, axis: Axis, dim: int, meanwhile: Meanwhile = _nothing) -> Tensor:
    """This rank's part along `dim` of the sum; gradients are gathered."""
    return _dual(
        x, axis, lambda x: reduce_scatter(x, axis, dim), lambda grad: start_all_gather(grad, axis, dim), meanwhile
    )


def split_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part along `dim` of what all ranks hold alike; gradients are gathered."""
    return _dual(
        x, axis, lambda x: own_part(x, axis, dim).contiguous(), lambda grad: start_all_gather(grad, axis, dim)
    )


def concat_along(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The parts of all ranks along `dim`, from then on held alike; the gradient's own part goes back."""
    back = _at_once(lambda grad: own_part(grad, axis, dim).contiguous())
    return _dual(x, axis, lambda x: all_gather(x, axis, dim), back)


class Arriving(NamedTuple):
    """A tensor that must not be read before `wait` has returned it."""

    tensor: Tensor
    pending: Pending | None

    def wait(self) -> Tensor:
        """The tensor, filled."""
        if self.pending is not None:
            self.pending.wait()
        return self.tensor


def exchange(
    x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int], meanwhile: Meanwhile = _nothing
) -> Arriving:
    """Rows to other ranks, `send[i]` to rank i and `receive[i]` from it; gradients travel back."""
    if axis.size == 1:
        return Arriving(x, None)
    begun: list[Pending] = []

    def forward(x: Tensor) -> Tensor:
        begun.append(start_all_to_all(x, axis, send, receive))
        return begun[0].out

    out = _dual(x, axis, forward, lambda grad: start_all_to_all(grad, axis, receive, send), meanwhile)
    return Arriving(out, begun[0])
