"""Collectives with gradients against autograd of the same sums over all ranks' inputs, computed in one process.

Each rank weighs what it gets by numbers of its own; where all ranks hold the result alike, the weights are
alike and the result counts once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.comm import functions
from megaswitch.topology.topology import Axis, make_axis

SHAPE = (4, 12, 2)
DIM = 1


@dataclass(frozen=True)
class Case:
    """`here` is what a rank does; `serial` gives every rank's result from every rank's input."""

    here: Callable[[Tensor, Axis], Tensor]
    serial: Callable[[list[Tensor]], list[Tensor]]
    input_alike: bool = False
    output_alike: bool = False


def rows_sent(n: int) -> list[list[int]]:
    """Rows from each rank to each, `SHAPE[0]` from every rank; some parts are empty."""
    return [[SHAPE[0] - 1 if r == (s + 1) % n else int(r == s) for r in range(n)] for s in range(n)]


def exchange_here(x: Tensor, axis: Axis) -> Tensor:
    splits = rows_sent(axis.size)
    return functions.exchange(x, axis, splits[axis.rank], [row[axis.rank] for row in splits]).wait()


def exchange_serially(parts: list[Tensor]) -> list[Tensor]:
    splits = rows_sent(len(parts))
    pieces = [x.split(rows) for x, rows in zip(parts, splits, strict=True)]
    return [torch.cat([piece[r] for piece in pieces]) for r in range(len(parts))]


def total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


CASES = {
    "copy_to": Case(functions.copy_to, lambda parts: parts, input_alike=True),
    "reduce_from": Case(functions.reduce_from, lambda parts: [total(parts)] * len(parts), output_alike=True),
    "gather_along": Case(
        lambda x, axis: functions.gather_along(x, axis, DIM), lambda parts: [torch.cat(parts, DIM)] * len(parts)
    ),
    "scatter_along": Case(
        lambda x, axis: functions.scatter_along(x, axis, DIM), lambda parts: [*total(parts).chunk(len(parts), DIM)]
    ),
    "split_along": Case(
        lambda x, axis: functions.split_along(x, axis, DIM),
        lambda parts: [x.chunk(len(parts), DIM)[r] for r, x in enumerate(parts)],
        input_alike=True,
    ),
    "concat_along": Case(
        lambda x, axis: functions.concat_along(x, axis, DIM),
        lambda parts: [torch.cat(parts, DIM)] * len(parts),
        output_alike=True,
    ),
    "exchange": Case(exchange_here, exchange_serially),
}


def number(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(out: Tensor, rank: int) -> Tensor:
    return (out.sin() * number(100 + rank, *out.shape)).sum()


def serial(case: Case, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every rank's result and the gradient of its input, by one process's autograd."""
    leaves = [number(0 if case.input_alike else r, *SHAPE).requires_grad_() for r in range(n)]
    if case.input_alike:
        leaves = [leaves[0]] * n
    outs = case.serial(leaves)
    counted = outs[:1] if case.output_alike else outs
    torch.stack([loss_of(out, r) for r, out in enumerate(counted)]).sum().backward()
    return [out.detach() for out in outs], [leaf.grad for leaf in leaves]


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_forward_and_backward(world, name, n):
    case = CASES[name]
    outs, grads = serial(case, n)

    def work():
        axis = make_axis("line", range(n), dist.get_rank())
        x = number(0 if case.input_alike else axis.rank, *SHAPE).requires_grad_()
        out = case.here(x, axis)
        loss_of(out, 0 if case.output_alike else axis.rank).backward()
        return out.detach(), x.grad

    for rank, (out, grad) in enumerate(world(n, work)):
        assert far(outs[rank], out) < 1e-14
        assert far(grads[rank], grad) < 1e-14


def test_gradients_of_views_and_expanded_gradients(world):
    """What comes back from `sum` has stride 0, what comes from a transposed product is no row-major tensor."""

    def work():
        axis = make_axis("line", range(2), dist.get_rank())
        for name in ("gather_along", "scatter_along", "split_along", "concat_along"):
            for change in (lambda y: y, lambda y: y.transpose(0, 2)):
                x = number(axis.rank, *SHAPE).requires_grad_()
                change(getattr(functions, name)(x, axis, 1)).sum().backward()
                expected = 2.0 if name == "gather_along" else 1.0
                assert torch.equal(x.grad, torch.full_like(x, expected)), name
        for name in ("copy_to", "reduce_from"):
            x = number(axis.rank, *SHAPE).requires_grad_()
            getattr(functions, name)(x, axis).sum().backward()
            assert torch.equal(x.grad, torch.full_like(x, 2.0 if name == "copy_to" else 1.0)), name

    world(2, work)


def test_on_one_rank_all_are_the_identity():
    alone, x = Axis("alone", 0, (0,)), number(0, *SHAPE)
    for name, args in {
        "copy_to": (),
        "reduce_from": (),
        "gather_along": (1,),
        "scatter_along": (1,),
        "split_along": (1,),
        "concat_along": (1,),
    }.items():
        assert getattr(functions, name)(x, alone, *args) is x
    assert functions.exchange(x, alone, [4], [4]).wait() is x
