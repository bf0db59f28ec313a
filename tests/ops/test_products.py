"""Products, by torch and by the C++ kernels: held to float64 products, of each expert's rows where they have one."""

import pytest
import torch
from ops.libraries import DTYPES, ROUNDING
from torch import Tensor

from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.fused.products import cpu_products as products
from megaswitch.ops.reference import products as reference
from megaswitch.ops.reference.products import grouped_times

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
    out, expected = grouped_times(*leaves, counts), by_expert(*wide, counts)
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
    grouped_times(x_ND, w_EDF, [2, 3]).sum().backward()
    expected = torch.cat([w.sum(1).expand(n, 8) for w, n in zip(w_EDF.detach().double(), [2, 3], strict=True)])
    assert far(expected, x_ND.grad) < 1e-6


def test_both_ways_are_taken():
    """The cases above prove nothing about the grouped product if no case takes it."""
    assert reference._aligned(number(4, 8, 16).float()) and reference._aligned(number(4, 8, 16).bfloat16())
    assert not reference._aligned(number(4, 3, 16).float()) and not reference._aligned(number(4, 8, 5).bfloat16())


ROWS = [1, 5, 64, 200]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_kernels_one_matrix(dtype, transposed, rows):
    """A matrix stored either way round, and its gradient added to one of the same type or a wider one."""
    ours = products(cpp_kernels())
    x, grad = number(2, rows, 33).to(dtype), number(2 * rows, 20, seed=1).to(dtype)
    stored = number(20, 33, seed=2).to(dtype).t() if transposed else number(33, 20, seed=2).to(dtype)
    assert far(x.double() @ stored.double(), ours.times(x, stored)) < ROUNDING[dtype]
    for wide in {dtype, torch.float64 if dtype == torch.float64 else torch.float32}:
        into = number(33, 20, seed=3).to(wide)
        expected = into.double() + x.flatten(0, 1).double().t() @ grad.double()
        ours.add_outer_(into, x.flatten(0, 1), grad)
        assert into.dtype == wide
        assert far(expected, into) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [*COUNTS.values(), [70, 0, 3, 129], [131, 67, 300, 1], [65, 1, 1, 0]])
def test_kernels_by_expert(dtype, counts):
    """Numbers of rows that are rounded, up to where the next experts' rows or the end come."""
    ours, rows = products(cpp_kernels()), sum(counts)
    x, grad = number(rows, 24).to(dtype), number(rows, 40, seed=1).to(dtype)
    weights = number(4, 24, 40, seed=2).to(dtype)
    across = number(4, 40, 24, seed=2).to(dtype).transpose(1, 2)
    for w_EDF in (weights, across):
        expected = by_expert(x.double(), w_EDF.double(), counts)
        assert far(expected, ours.grouped_times(x, w_EDF, counts)) < ROUNDING[dtype]
    into = number(4, 24, 40, seed=3).to(torch.float64 if dtype == torch.float64 else torch.float32)
    parts = zip(into.double(), x.double().split(counts), grad.double().split(counts), strict=True)
    expected = torch.stack([one + a.t() @ b for one, a, b in parts])
    ours.add_grouped_(into, x, grad, counts)
    assert far(expected, into) < ROUNDING[dtype]


def test_kernels_without_inputs_or_of_other_sizes():
    """A product over nothing is 0; what does not fit is said."""
    ours = products(cpp_kernels())
    assert not ours.times(number(3, 0), number(0, 4)).any()
    with pytest.raises(RuntimeError, match="a row has 3 numbers"):
        ours.times(number(2, 3), number(4, 5))
    with pytest.raises(RuntimeError, match="counts add up to 3"):
        ours.grouped_times(number(2, 3), number(1, 3, 5), [3])
    with pytest.raises(RuntimeError, match="there are 2 experts"):
        ours.grouped_times(number(2, 3), number(2, 3, 5), [2])


@pytest.mark.parametrize("library", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape", [(1, 2, 1), (5, 7, 9), (300, 6, 130), (257, 64, 65), (0, 4, 4)])
def test_wide_products_of_narrow_numbers(library, dtype, across, shape):
    """Sums are not rounded to the operands' type, by the matrix as it is stored or across."""
    rows, inner, outer = shape
    found = products(cpp_kernels()) if library == "cpp" else reference.PRODUCTS
    x = number(rows, inner).to(dtype)
    weight = number(outer, inner, seed=1).to(dtype).t() if across else number(inner, outer, seed=1).to(dtype)
    out = found.wide_times(x, weight)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    assert far(x.double() @ weight.double(), out) < ROUNDING[out.dtype]
