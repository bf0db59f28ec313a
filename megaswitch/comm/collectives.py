"""Collectives over one axis without gradients; the ones with gradients, built of these, are in `functions.py`.

Each is the identity on an axis of size 1. `dim` is a tensor dimension, cut in equal parts in the order of ranks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.topology.topology import Axis

Op = Literal["sum", "max"]


def _op(op: Op) -> dist.ReduceOp.RedOpType:
    return dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM


def all_reduce_(x: Tensor, axis: Axis, op: Op = "sum") -> Tensor:
    """Replace `x` (contiguous) by its sum or maximum over the axis, and return it."""
    if axis.size > 1:
        dist.all_reduce(x, op=_op(op), group=axis.group)
    return x


def all_reduce(x: Tensor, axis: Axis, op: Op = "sum") -> Tensor:
    """The sum or maximum of `x` over the axis, as a new tensor (`x` itself on an axis of size 1)."""
    return x if axis.size == 1 else all_reduce_(x.clone(memory_format=torch.contiguous_format), axis, op)


def all_gather(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """The parts of all ranks side by side along `dim`."""
    if axis.size == 1:
        return x
    rows = x.movedim(dim, 0).contiguous()
    out = rows.new_empty((axis.size * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_single(out, rows, group=axis.group)
    return out.movedim(0, dim)


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """This rank's part along `dim` of the sum over the axis; the axis's size must divide that dimension."""
    if axis.size == 1:
        return x
    rows = x.movedim(dim, 0).contiguous()
    out = rows.new_empty((rows.shape[0] // axis.size, *rows.shape[1:]))
    dist.reduce_scatter_single(out, rows, group=axis.group)
    return out.movedim(0, dim)


def own_part(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part of `x` along `dim`: no communication."""
    return x if axis.size == 1 else x.chunk(axis.size, dim)[axis.rank]


def all_to_all(x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Send the next `send[i]` rows of `x` to rank i; the result holds `receive[i]` rows of rank i, in order."""
    if axis.size == 1:
        return x
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=axis.group)
    return out


def barrier(axis: Axis) -> None:
    """Wait until every rank of the axis has come here."""
    if axis.size > 1:
        dist.barrier(group=axis.group)


def assert_replicated(x: Tensor, axis: Axis, what: str) -> None:
    """Raise AssertionError unless `x` is equal bit for bit on all ranks of the axis (NaN equals NaN)."""
    if axis.size == 1:
        return
    bits = x.detach().reshape(-1).contiguous().view(torch.uint8)
    highest = all_reduce(bits, axis, "max")
    lowest = 255 - all_reduce(255 - bits, axis, "max")
    assert torch.equal(highest, lowest), f"{what} differs between the ranks {axis.ranks} of {axis.name}"
