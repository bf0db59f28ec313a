"""Products by expert: torch's grouped product and the loop are held to float64 products of each expert's rows."""

import pytest
import torch
from torch import Tensor

from megaswitch.ops.reference import grouped
from megaswitch.ops.reference.grouped import grouped_linear

COUNTS = {
    "some each": [3, 1, 5, 2],
    "empty first and last": [0, 4, 7, 0],
    "empty in the middle": [5, 0, 0, 6],
    "all to one": [0, 11, 0, 0],
    "nothing at all": [0, 0, 0, 0],
}


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_expert(x_ND: Tensor, w_EDF: Tensor, counts: list[int]) -> Tensor:
    rows = x_ND.split(counts)
    return torch.cat([row @ w for row, w in zip(rows, w_EDF, strict=True)])


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b.double()).abs().max() / a.abs().max()) if a.numel() else 0.0


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize(
    ("dtype", "width", "tolerance"),
    [
        (torch.float64, 8, 1e-14),
        (torch.float64, 3, 1e-14),
        (torch.float32, 8, 1e-6),
        (torch.float32, 3, 1e-6),
        (torch.bfloat16, 8, 1e-2),
        (torch.bfloat16, 3, 1e-2),
    ],
)
def test_forward_and_gradients(case, dtype, width, tolerance):
    """Widths of 8 and 16 take the grouped product in float32 and bf16, widths of 3 and 5 the loop."""
    counts, outer = COUNTS[case], 16 if width == 8 else 5
    narrow = [number(sum(counts), width).to(dtype), number(4, width, outer, seed=1).to(dtype)]
    leaves = [x.clone().requires_grad_() for x in narrow]
    wide = [x.double().requires_grad_() for x in narrow]
    out, expected = grouped_linear(*leaves, counts), by_expert(*wide, counts)
    assert out.dtype == dtype
    assert far(expected.detach(), out.detach()) < tolerance
    weight = number(sum(counts), outer, seed=2).to(dtype)
    (out * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for ours, theirs in zip(leaves, wide, strict=True):
        assert far(theirs.grad, ours.grad) < tolerance if theirs.grad.any() else not ours.grad.any()
    for expert, rows in enumerate(counts):
        assert rows or not leaves[1].grad[expert].any(), "an expert without rows got a gradient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_expanded(dtype):
    """What comes back from `sum` has stride 0."""
    x_ND, w_EDF = number(5, 8).to(dtype).requires_grad_(), number(2, 8, 16, seed=1).to(dtype).requires_grad_()
    grouped_linear(x_ND, w_EDF, [2, 3]).sum().backward()
    expected = torch.cat([w.sum(1).expand(n, 8) for w, n in zip(w_EDF.detach().double(), [2, 3], strict=True)])
    assert far(expected, x_ND.grad) < 1e-6


def test_both_ways_are_taken():
    """The cases above prove nothing about the grouped product if no case takes it."""
    assert grouped._aligned(number(4, 8, 16).float()) and grouped._aligned(number(4, 8, 16).bfloat16())
    assert not grouped._aligned(number(4, 3, 16).float()) and not grouped._aligned(number(4, 8, 5).bfloat16())
