"""Weight gradients as work of their own, that can be done later than the gradients of the inputs.

Nothing in a backward pass waits for a weight's gradient. So a product that gives one is put aside as work, and done
while a collective is under way, at the end of a unit, or when a zero-bubble schedule asks for it. It adds into the
parameter's `main_grad`, which the optimizer's buckets give it. Parameters without one (a model outside training) get
their gradients from autograd, at once.

N rows, I inputs, O outputs, X experts; V rows of a table, D their width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megaswitch.ops.reference.products import PRODUCTS, Products

Work = Callable[[], None]


class WeightWork:
    """Weight gradients that are still to be computed, in the order in which they came up.

    Args:
        products: what computes products, those with the weights too.
        held_back: whether `meanwhile` leaves the work alone: it is taken whole and done later.
        eager: whether work is done as soon as it comes up, because there is no collective to hide it behind.
    """

    def __init__(self, products: Products = PRODUCTS, *, eager: bool = False) -> None:
        self.products, self.held_back, self.eager = products, False, eager
        self._todo: list[Work] = []

    def put(self, work: Work) -> None:
        """Add a piece of work."""
        if self.eager and not self.held_back:
            work()
        else:
            self._todo.append(work)

    def take(self) -> list[Work]:
        """All that is to be done, which the caller now has to do."""
        todo, self._todo = self._todo, []
        return todo

    def meanwhile(self) -> None:
        """Do it, unless it is held back."""
        if not self.held_back:
            for work in self.take():
                work()


def main_grad_of(weight: Tensor) -> Tensor | None:
    """Where a parameter's gradient is added up, in the parameter's shape; None outside training."""
    found: Tensor | None = getattr(weight, "main_grad", None)
    return found


class _Product(torch.autograd.Function):
    """x W with the weight's gradient as work; `grouped` are the rows of each expert, None for one matrix."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, work: WeightWork, transposed: bool, grouped: Sequence[int] | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        # not saved like x: recomputation would give back a copy that knows of no main_grad
        ctx.weight, ctx.work, ctx.transposed, ctx.grouped = weight, work, transposed, grouped
        return _times(x, weight, work.products, transposed, grouped)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (x,), weight, work, transposed, grouped = ctx.saved_tensors, ctx.weight, ctx.work, ctx.transposed, ctx.grouped
        grad = grad.contiguous()
        of_weight = _weight_grad(x, grad, weight, work, transposed, grouped) if ctx.needs_input_grad[1] else None
        of_x = _times(grad, weight, work.products, not transposed, grouped) if ctx.needs_input_grad[0] else None
        return of_x, of_weight, None, None, None


class _WideProduct(torch.autograd.Function):
    """x W in at least float32, whose gradient is rounded to x's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, work: WeightWork, transposed: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.work, ctx.transposed, ctx.grouped = weight, work, transposed, None
        out_NO = work.products.wide_times(x.flatten(0, -2), oriented(weight, x.dtype, transposed))
        return out_NO.view(*x.shape[:-1], out_NO.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Product.backward(ctx, grad.to(ctx.saved_tensors[0].dtype))[:4]


class _Hidden(torch.autograd.Function):
    """max(x W, 0), or GEGLU of x by W and a gate's matrix. Kept are x, and what comes out or both products. Nobody else
    sees these: the backward, of which there is one, puts their gradients in their place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gate: Tensor | None, work: WeightWork, grouped: Sequence[int] | None
    ) -> Tensor:
        ctx.weight, ctx.gate, ctx.work, ctx.grouped = weight, gate, work, grouped
        narrow = weight.to(x.dtype)
        if gate is None:
            hidden = work.products.relu_times(x, narrow, grouped)
            ctx.save_for_backward(x, hidden)
        else:
            hidden, *kept = work.products.geglu_times(x, gate.to(x.dtype), narrow, grouped)
            ctx.save_for_backward(x, *kept)
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, *kept), work, grouped = ctx.saved_tensors, ctx.work, ctx.grouped
        grad = grad.contiguous()
        if ctx.gate is None:
            sides = [(ctx.weight, torch.ops.aten.threshold_backward(grad, kept[0], 0))]
        else:
            of_gate, of_x = kept
            work.products.geglu_gradient_(of_gate, of_x, grad)
            sides = [(ctx.weight, of_x), (ctx.gate, of_gate)]
        of_weights: list[Tensor | None] = [
            _weight_grad(x, side, weight, work, False, grouped) if needed else None
            for (weight, side), needed in zip(sides, ctx.needs_input_grad[1:], strict=False)
        ]
        parts = [_times(s, w, work.products, True, grouped) for w, s in sides if ctx.needs_input_grad[0]]
        for other in parts[1:]:
            parts[0].add_(other)
        return parts[0] if parts else None, of_weights[0], of_weights[1] if len(sides) == 2 else None, None, None


def weight_grad(weight: Tensor, work: WeightWork, add: Callable[[Tensor], None]) -> Tensor | None:
    """The weight's gradient, which `add` adds to a tensor; None where that is put aside as work."""
    main_grad = main_grad_of(weight)
    if main_grad is None:
        of_weight = torch.zeros_like(weight)
        add(of_weight)
        return of_weight
    work.put(lambda: add(main_grad))
    return None


def _weight_grad(
    x: Tensor, grad: Tensor, weight: Tensor, work: WeightWork, transposed: bool, grouped: Sequence[int] | None
) -> Tensor | None:
    return weight_grad(
        weight, work, lambda into: add_weight_grad(into, x, grad, work.products, transposed, grouped)
    )


def oriented(weight: Tensor, dtype: torch.dtype, transposed: bool) -> Tensor:
    """The matrix [I, O] (or those of experts) in that type, from one that is stored [O, I] where `transposed`."""
    weight = weight.to(dtype)
    return weight.transpose(-1, -2) if transposed else weight


def _times(
    x: Tensor, weight: Tensor, products: Products, transposed: bool, grouped: Sequence[int] | None
) -> Tensor:
    weight = oriented(weight, x.dtype, transposed)
    return products.times(x, weight) if grouped is None else products.grouped_times(x, weight, grouped)


@torch.no_grad()
def add_weight_grad(
    into: Tensor,
    x: Tensor,
    grad: Tensor,
    products: Products,
    transposed: bool = False,
    grouped: Sequence[int] | None = None,
) -> None:
    """Add x^T grad (its transpose for a weight that is used transposed), expert by expert where `grouped`."""
    rows, cols = (grad, x) if transposed else (x, grad)
    if grouped is None:
        products.add_outer_(into, rows.flatten(0, -2), cols.flatten(0, -2))
    else:
        products.add_grouped_(into, rows, cols, grouped)


def product(x: Tensor, weight_IO: Tensor, work: WeightWork, *, transposed: bool = False) -> Tensor:
    """x W [..., O] in x's type, whatever the weight's; with `transposed` the weight is stored [O, I]."""
    out: Tensor = _Product.apply(x, weight_IO, work, transposed, None)  # type: ignore[no-untyped-call]
    return out


def wide_product(x: Tensor, weight_IO: Tensor, work: WeightWork, *, transposed: bool = False) -> Tensor:
    """`product` in at least float32: only its operands, and its gradient, are of x's type."""
    out: Tensor = _WideProduct.apply(x, weight_IO, work, transposed)  # type: ignore[no-untyped-call]
    return out


def grouped_product(x_NI: Tensor, weight_XIO: Tensor, counts: Sequence[int], work: WeightWork) -> Tensor:
    """[N, O] in x's type: the first counts[0] rows times weight[0], the next counts[1] times weight[1], and so on."""
    out: Tensor = _Product.apply(x_NI, weight_XIO, work, False, counts)  # type: ignore[no-untyped-call]
    return out


def hidden_units(
    x: Tensor, weight: Tensor, gate: Tensor | None, work: WeightWork, counts: Sequence[int] | None = None
) -> Tensor:
    """max(x W, 0), or where there is a gate's matrix GEGLU: gelu(x gate) * (x W); by one matrix [I, O] each or, with
    counts, by those of the rows' experts [X, I, O]."""
    out: Tensor = _Hidden.apply(x, weight, gate, work, counts)  # type: ignore[no-untyped-call]
    return out


class _Lookup(torch.autograd.Function):
    """Rows of a table, whose gradients are added where they belong: of the rest of the table nothing is touched."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, work: WeightWork) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.work = table, work
        return nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        return weight_grad(ctx.table, ctx.work, lambda into: _add_rows(into, ids, grad)), None, None


@torch.no_grad()
def _add_rows(into_VD: Tensor, ids: Tensor, grad: Tensor) -> None:
    into_VD.index_add_(0, ids.flatten(), grad.flatten(0, -2).to(into_VD.dtype))


def lookup(table_VD: Tensor, ids: Tensor, work: WeightWork) -> Tensor:
    """[*ids, D] in the table's type: its rows `ids`."""
    out: Tensor = _Lookup.apply(table_VD, ids, work)  # type: ignore[no-untyped-call]
    return out
