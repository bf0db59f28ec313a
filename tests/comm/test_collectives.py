"""Collectives without gradients, each against its definition over the inputs of all ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.comm.collectives import (
    all_gather,
    all_reduce,
    all_reduce_,
    all_to_all,
    assert_replicated,
    barrier,
    own_part,
    reduce_scatter,
)
from megaswitch.topology.topology import Axis, make_axis

WORLDS = (2, 3, 4)
ALONE = Axis("alone", 0, (0,))


def axis_here() -> Axis:
    return make_axis("line", range(dist.get_world_size()), dist.get_rank())


def part(rank: int, *shape: int) -> Tensor:
    """What `rank` brings, known to all."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("n", WORLDS)
def test_all_reduce(world, n):
    def work():
        axis, parts = axis_here(), [part(r, 3, 4) for r in range(n)]
        x = parts[axis.rank].clone()
        out = all_reduce(x, axis)
        assert torch.equal(x, parts[axis.rank]), "the input was changed"
        assert far(torch.stack(parts).sum(0), out) < 1e-15
        assert torch.equal(all_reduce(x, axis, "max"), torch.stack(parts).amax(0))
        assert far(torch.stack(parts).sum(0).t(), all_reduce(x.t(), axis)) < 1e-15, "of a view"
        assert all_reduce_(x, axis) is x and far(out, x) < 1e-15

    world(n, work)


@pytest.mark.parametrize("n", WORLDS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_all_gather_and_reduce_scatter(world, n, dim):
    def work():
        axis, parts = axis_here(), [part(r, 2, 3, 4) for r in range(n)]
        assert torch.equal(all_gather(parts[axis.rank], axis, dim), torch.cat(parts, dim))
        wholes = [torch.cat([part(10 * r + s, 2, 3, 4) for s in range(n)], dim) for r in range(n)]
        expected = torch.stack(wholes).sum(0).chunk(n, dim)[axis.rank]
        assert far(expected, reduce_scatter(wholes[axis.rank], axis, dim)) < 1e-15
        assert torch.equal(own_part(wholes[0], axis, dim), wholes[0].chunk(n, dim)[axis.rank])

    world(n, work)


def rows_sent(n: int) -> list[list[int]]:
    """Rows from each rank to each: uneven, some none."""
    return [[(3 * s + 5 * r + 2) % 4 if (s, r) != (0, 1) else 0 for r in range(n)] for s in range(n)]


@pytest.mark.parametrize("n", WORLDS)
def test_all_to_all_with_uneven_and_empty_parts(world, n):
    splits = rows_sent(n)
    assert any(0 in row for row in splits) and len({c for row in splits for c in row}) > 2

    def work():
        axis = axis_here()
        wholes = [part(r, sum(splits[r]), 3) for r in range(n)]
        receive = [splits[s][axis.rank] for s in range(n)]
        got = all_to_all(wholes[axis.rank], axis, splits[axis.rank], receive)
        expected = torch.cat([wholes[s].split(splits[s])[axis.rank] for s in range(n)])
        assert torch.equal(got, expected)

    world(n, work)


def test_all_to_all_of_nothing(world):
    def work():
        axis = axis_here()
        return all_to_all(torch.zeros(0, 3), axis, [0, 0], [0, 0]).shape

    assert world(2, work) == [(0, 3)] * 2


def test_on_one_rank_all_are_the_identity():
    x = part(0, 2, 3)
    for out in (
        all_reduce_(x, ALONE),
        all_reduce(x, ALONE),
        all_gather(x, ALONE, 1),
        reduce_scatter(x, ALONE, 1),
        own_part(x, ALONE, 1),
        all_to_all(x, ALONE, [2], [2]),
    ):
        assert out is x
    barrier(ALONE)
    assert_replicated(x, ALONE, "x")


@pytest.mark.parametrize(
    ("name", "mine"),
    [
        ("value", lambda rank: torch.tensor([1.0, 2.0 + 1e-15 * (rank == 1)], dtype=torch.float64)),
        ("sign of zero", lambda rank: torch.tensor([0.0 if rank else -0.0])),
        ("bf16", lambda rank: torch.tensor([1.0, 256.0 + 2 * (rank == 1)], dtype=torch.bfloat16)),
        ("whole number", lambda rank: torch.tensor([[3], [4 + rank]])),
        ("truth", lambda rank: torch.tensor([True, rank == 0])),
        ("one number", lambda rank: torch.tensor(1.0 + rank)),
        ("NaN here", lambda rank: torch.tensor([float("nan") if rank else 1.0])),
    ],
)
def test_a_difference_in_one_bit_is_told_on_every_rank(world, name, mine):
    def work():
        try:
            assert_replicated(mine(dist.get_rank()), axis_here(), f"the {name}")
        except AssertionError as error:
            return str(error)

    assert world(2, work) == [f"the {name} differs between the ranks (0, 1) of line"] * 2


def test_what_is_alike_passes(world):
    def work():
        axis = axis_here()
        x = torch.tensor([[1.0, float("nan")], [-0.0, float("inf")]], requires_grad=True)
        for tensor in (x, x.t(), x[:, 0], x.to(torch.bfloat16), torch.tensor(3), torch.tensor([True]), torch.zeros(0)):
            assert_replicated(tensor, axis, "it")

    world(3, work)
