"""The kernels that bring tokens to the order of their experts and back, against their definitions."""

import pytest
import torch
from ops.libraries import DTYPES, LIBRARIES, ROUNDING, each, far, gradients, load, numbers

from megaswitch.ops.fused import permute as fused
from megaswitch.ops.reference import permute as reference
from megaswitch.ops.reference.routing import lane_order

SHAPES = [(0, 8, 1), (1, 1, 1), (7, 33, 1), (70, 130, 1), (9, 17, 2), (40, 64, 3)]
"""Tokens, width, choices."""
EXPERTS = 5
for_all_routes = each(library=LIBRARIES, dtype=DTYPES, shape=SHAPES, seed=[0, 1])


def route(tokens, choices, seed=0):
    """Assignments kept in the order of their experts; a third is dropped, or all with seed 1."""
    generator = torch.Generator().manual_seed(seed)
    lane_A = torch.randint(0, EXPERTS, (tokens * choices,), generator=generator)
    lane_A[torch.rand(lane_A.shape, generator=generator) < (1.0 if seed == 1 else 0.3)] = EXPERTS
    order = lane_order(lane_A, EXPERTS + 1)
    return order.order_A[: int(order.count_L[:EXPERTS].sum())], order.place_A


@for_all_routes
def test_permute(library, dtype, shape, seed):
    kernels, (tokens, width, choices) = load(library), shape
    kept, place = route(tokens, choices, seed)
    leaves = [numbers(tokens, width, seed=2, dtype=dtype).requires_grad_()]
    weights = [numbers(len(kept), width, seed=3, dtype=dtype)]
    (a,), (da,) = gradients(lambda x: reference.permute(x, kept, place), leaves, weights)
    (b,), (db,) = gradients(lambda x: fused.permute(kernels, x, kept, place), leaves, weights)
    assert torch.equal(a, b)
    if tokens:
        assert far(da, db) < ROUNDING[dtype]


@for_all_routes
def test_unpermute(library, dtype, shape, seed):
    """Gates are wide, as routers give them."""
    kernels, (tokens, width, choices) = load(library), shape
    kept, place = route(tokens, choices, seed)
    leaves = [numbers(len(kept), width, seed=2, dtype=dtype).requires_grad_()]
    leaves.append(numbers(tokens, choices, seed=4, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_())
    weights = [numbers(tokens, width, seed=3, dtype=dtype)]
    expected = gradients(lambda x, gate: reference.unpermute(x, gate, kept, place), leaves, weights)
    found = gradients(lambda x, gate: fused.unpermute(kernels, x, gate, kept, place), leaves, weights)
    for a, b in zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True):
        assert far(a, b) < ROUNDING[dtype] if a.numel() else a.shape == b.shape


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_that_are_not_contiguous(library):
    kernels, (kept, place) = load(library), route(12, 1)
    x, gate = numbers(6, 12, seed=0, dtype=torch.float64).t(), numbers(2, 12, seed=1, dtype=torch.float64).t()[:, :1]
    rows = reference.permute(x, kept, place)
    assert torch.equal(rows, fused.permute(kernels, x, kept, place))
    rows = rows.t().contiguous().t()
    expected = reference.unpermute(rows, gate, kept, place)
    assert far(expected, fused.unpermute(kernels, rows, gate, kept, place)) < ROUNDING[torch.float64]
