"""Products whose weight gradients are work of their own: when it is done, where it goes, and that it is done once."""

import pytest
import torch
from torch import Tensor, nn

from megaswitch.layers.context import Context
from megaswitch.layers.weight_work import WeightWork, grouped_product, lookup, product
from megaswitch.model.transformer import alone

COUNTS = [3, 0, 2]


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    """One with a place for its gradient, as the optimizer's buckets give it."""
    made = nn.Parameter(number(*shape, seed=seed))
    made.main_grad = torch.zeros(shape, dtype=dtype)  # type: ignore[attr-defined]
    return made


def apply(x: Tensor, weight: Tensor, work: WeightWork, kind: str) -> Tensor:
    if kind == "grouped":
        return grouped_product(x, weight, COUNTS, work)
    return product(x, weight, work, transposed=kind == "transposed")


def expected(x: Tensor, weight: Tensor, kind: str) -> Tensor:
    if kind == "grouped":
        return torch.cat([row @ w for row, w in zip(x.split(COUNTS), weight, strict=True)])
    return x @ (weight.t() if kind == "transposed" else weight)


SHAPES = {"plain": (4, 6), "transposed": (6, 4), "grouped": (3, 4, 6)}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("main_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_product(kind, main_grad, dtype):
    """With a main gradient (of any type) they are added to it and autograd gets none; without one it gets them."""
    x, weight = number(5, 4).requires_grad_(), parameter(*SHAPES[kind], dtype=dtype)
    if not main_grad:
        weight = nn.Parameter(weight.detach())
    twin_x, twin = x.detach().requires_grad_(), weight.detach().requires_grad_()
    work, wanted = WeightWork(), number(5, 6, seed=2)
    for _ in range(2):
        out, theirs = apply(x, weight, work, kind), expected(twin_x, twin, kind)
        torch.testing.assert_close(out, theirs)
        (out * wanted).sum().backward()
        (theirs * wanted).sum().backward()
        for todo in work.take():
            todo()
    torch.testing.assert_close(x.grad, twin_x.grad)
    found = weight.main_grad if main_grad else weight.grad  # type: ignore[attr-defined]
    tolerance = 1e-6 if main_grad and dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), twin.grad, rtol=tolerance, atol=tolerance)
    assert not main_grad or weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_a_table_are_those_of_its_rows(dtype):
    """Rows that come several times, others not at all; with a main gradient they are work, without one at once."""
    ids, wanted = torch.tensor([[0, 3, 3], [5, 0, 3]]), number(2, 3, 4, seed=2)
    twin = number(6, 4, seed=1).requires_grad_()
    (nn.functional.embedding(ids, twin) * wanted).sum().backward()
    table, work = parameter(6, 4, dtype=dtype), WeightWork()
    for _ in range(2):
        out = lookup(table, ids, work)
        assert torch.equal(out, twin.detach()[ids])
        (out * wanted).sum().backward()
    assert not table.main_grad.any() and table.grad is None  # type: ignore[attr-defined]
    for todo in work.take():
        todo()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    found = table.main_grad.double()  # type: ignore[attr-defined]
    torch.testing.assert_close(found, 2 * twin.grad, rtol=tolerance, atol=tolerance)
    plain = nn.Parameter(twin.detach().clone())
    (lookup(plain, ids, work) * wanted).sum().backward()
    assert torch.equal(plain.grad, twin.grad)


def test_a_wide_weight_is_cast_where_it_is_used():
    x, weight = number(5, 4).to(torch.bfloat16), parameter(4, 6)
    assert product(x, weight, WeightWork()).dtype == torch.bfloat16


def run(work: WeightWork) -> tuple[nn.Parameter, nn.Parameter]:
    first, second = parameter(4, 6), parameter(6, 3, seed=2)
    product(product(number(5, 4).requires_grad_(), first, work), second, work).sum().backward()
    return first, second


def done(*parameters: nn.Parameter) -> list[bool]:
    return [bool(p.main_grad.any()) for p in parameters]  # type: ignore[attr-defined]


def test_when_it_is_done():
    """Put aside until someone has time; at once when there is nothing to hide it behind; never when held back."""
    later, eager, held = WeightWork(), WeightWork(eager=True), WeightWork(eager=True)
    held.held_back = True
    weights = run(later)
    assert done(*weights) == [False, False]
    later.meanwhile()
    assert done(*weights) == [True, True]
    assert done(*run(eager)) == [True, True]
    weights = run(held)
    held.meanwhile()
    assert done(*weights) == [False, False]
    todo = held.take()
    assert len(todo) == 2 and not held.take()
    for one in todo:
        one()
    assert done(*weights) == [True, True]


def test_recomputation_does_not_do_it_twice():
    """Under activation recomputation the product runs forward twice, its weight gradient once."""
    topology = alone(torch.device("cpu"))
    ctx = Context(topology, True, 0, 0, torch.arange(1), 1.0, {}, recompute="selective")
    x, weight = number(5, 4).requires_grad_(), parameter(4, 6)
    ctx.again("core", lambda x: product(x, weight, ctx.work).relu(), x).sum().backward()
    todo = ctx.work.take()
    assert len(todo) == 1 and weight.grad is None
