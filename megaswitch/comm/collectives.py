"""Collectives over one axis without gradients; the ones with gradients, built of these, are in `functions.py`.

Each is the identity on an axis of size 1. `dim` is a tensor dimension, cut in equal parts in the order of ranks.
The `start_` forms return at once, so that other work can be done before `Pending.wait` gives the result.

What a collective moves is told, here and in every layer's formula, by the bytes of the whole tensor on one rank: what
an all-reduce sums, what comes out of an all-gather, what goes into a reduce-scatter, what an all-to-all or a send gives
away. `s` is the size of the activations' type, `w` of that in which they are at least float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.topology.topology import Axis

Op = Literal["sum", "max"]


@dataclass
class Pending:
    """A collective under way; `kind` names it in a profile."""

    kind: str
    out: Tensor
    work: dist.Work | None = None
    finish: Callable[[Tensor], Tensor] | None = None

    def wait(self) -> Tensor:
        """The result, once it is there; may be asked for again."""
        if self.work is not None:
            with torch.profiler.record_function(f"wait:{self.kind}"):
                self.work.wait()
            self.work = None
        if self.finish is not None:
            self.out, self.finish = self.finish(self.out), None
        return self.out


def _op(op: Op) -> dist.ReduceOp.RedOpType:
    return dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM


def start_all_reduce_(x: Tensor, axis: Axis, op: Op = "sum") -> Pending:
    """Begin replacing `x` (contiguous) by its sum or maximum over the axis."""
    work = None if axis.size == 1 else dist.all_reduce(x, op=_op(op), group=axis.group, async_op=True)
    return Pending(f"all_reduce:{axis.name}", x, work)


def all_reduce_(x: Tensor, axis: Axis, op: Op = "sum") -> Tensor:
    """Replace `x` (contiguous) by its sum or maximum over the axis, and return it."""
    return start_all_reduce_(x, axis, op).wait()


def all_reduce(x: Tensor, axis: Axis, op: Op = "sum") -> Tensor:
    """The sum or maximum of `x` over the axis, as a new tensor (`x` itself on an axis of size 1)."""
    return start_all_reduce(x, axis, op).wait()


def start_all_reduce(x: Tensor, axis: Axis, op: Op = "sum") -> Pending:
    """Begin summing (or the maximum of) `x` over the axis into a new tensor."""
    return start_all_reduce_(x if axis.size == 1 else x.clone(memory_format=torch.contiguous_format), axis, op)


def start_all_gather(x: Tensor, axis: Axis, dim: int = 0, out: Tensor | None = None) -> Pending:
    """Begin bringing the parts of all ranks side by side along `dim`, into `out` (dim 0, contiguous) if given."""
    kind = f"all_gather:{axis.name}"
    if axis.size == 1:
        return Pending(kind, x)
    rows = x.movedim(dim, 0).contiguous()
    gathered = rows.new_empty((axis.size * rows.shape[0], *rows.shape[1:])) if out is None else out
    work = dist.all_gather_single(gathered, rows, group=axis.group, async_op=True)
    return Pending(kind, gathered, work, lambda gathered: gathered.movedim(0, dim))


def all_gather(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """The parts of all ranks side by side along `dim`."""
    return start_all_gather(x, axis, dim).wait()


def start_reduce_scatter(x: Tensor, axis: Axis, dim: int = 0, out: Tensor | None = None) -> Pending:
    """Begin computing this rank's part along `dim` of the sum; the axis's size must divide that dimension. `out` may
    be that very part of `x` (dim 0, contiguous): the sum then takes its place."""
    kind = f"reduce_scatter:{axis.name}"
    if axis.size == 1:
        return Pending(kind, x)
    rows = x.movedim(dim, 0).contiguous()
    part = rows.new_empty((rows.shape[0] // axis.size, *rows.shape[1:])) if out is None else out
    work = dist.reduce_scatter_single(part, rows, group=axis.group, async_op=True)
    return Pending(kind, part, work, lambda part: part.movedim(0, dim))


def reduce_scatter(x: Tensor, axis: Axis, dim: int = 0) -> Tensor:
    """This rank's part along `dim` of the sum over the axis; the axis's size must divide that dimension."""
    return start_reduce_scatter(x, axis, dim).wait()


def own_part(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part of `x` along `dim`: no communication."""
    return x if axis.size == 1 else x.chunk(axis.size, dim)[axis.rank]


def start_all_to_all(x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Pending:
    """Begin sending the next `send[i]` rows of `x` to rank i, and receiving `receive[i]` rows from it."""
    kind = f"all_to_all:{axis.name}"
    if axis.size == 1:
        return Pending(kind, x)
    out = x.new_empty((sum(receive), *x.shape[1:]))
    work = dist.all_to_all_single(out, x.contiguous(), list(receive), list(send), group=axis.group, async_op=True)
    return Pending(kind, out, work)


def all_to_all(x: Tensor, axis: Axis, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """Send the next `send[i]` rows of `x` to rank i; the result holds `receive[i]` rows of rank i, in order."""
    return start_all_to_all(x, axis, send, receive).wait()


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
