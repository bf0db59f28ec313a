"""Products with weights, each with the addition into the gradient or the activation where there is one.

N rows (sorted by expert where they have experts), I inputs, O outputs; E experts, D inner and F outer width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference.products import Products
from megaswitch.utils.precision import at_least_float32


def _times_shapes(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


def _wide_shapes(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1], dtype=at_least_float32(x.dtype))


def _grouped_shapes(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[2])


def _geglu_shapes(x: Tensor, gates: Tensor, weights: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    hidden = _grouped_shapes(x, weights, counts)
    return hidden, hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape)


def _changed(into: Tensor, *_: Any) -> Tensor:
    return into


def _times_flops(x: Tensor, weight: Tensor, **_: Any) -> int:
    return 2 * x.numel() * weight.shape[-1]


def _outer_flops(into: Tensor, rows: Tensor, cols: Tensor, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * cols.shape[-1]


def _grouped_flops(x: Tensor, weights: Tensor, counts: Sequence[int], **_: Any) -> int:
    return 2 * x.numel() * weights.shape[-1]


def _geglu_flops(x: Tensor, gates: Tensor, *_: Any, **__: Any) -> int:
    return 4 * x.numel() * gates.shape[-1]


KERNELS = (
    Kernel("times", "(Tensor x, Tensor weight) -> Tensor", _times_shapes, _times_flops),
    Kernel("wide_times", "(Tensor x, Tensor weight) -> Tensor", _wide_shapes, _times_flops),
    Kernel("add_outer_", "(Tensor(a!) into, Tensor rows, Tensor cols) -> Tensor(a!)", _changed, _outer_flops),
    Kernel("grouped_times", "(Tensor x, Tensor weights, int[] counts) -> Tensor", _grouped_shapes, _grouped_flops),
    Kernel(
        "add_grouped_",
        "(Tensor(a!) into, Tensor rows, Tensor cols, int[] counts) -> Tensor(a!)",
        _changed,
        _outer_flops,
    ),
    Kernel("grouped_relu", "(Tensor x, Tensor weights, int[] counts) -> Tensor", _grouped_shapes, _grouped_flops),
    Kernel(
        "grouped_geglu",
        "(Tensor x, Tensor gates, Tensor weights, int[] counts) -> (Tensor, Tensor, Tensor)",
        _geglu_shapes,
        _geglu_flops,
    ),
)


def _add_outer_(kernels: Any, into_IO: Tensor, rows_NI: Tensor, cols_NO: Tensor) -> None:
    kernels.add_outer_(into_IO, rows_NI, cols_NO)


def _add_grouped_(kernels: Any, into_EDF: Tensor, x_ND: Tensor, grad_NF: Tensor, counts: Sequence[int]) -> None:
    kernels.add_grouped_(into_EDF, x_ND, grad_NF, counts)


def _by_groups(
    x: Tensor, counts: Sequence[int] | None, *weights: Tensor
) -> tuple[Tensor, Sequence[int], Sequence[Tensor]]:
    """Rows of x, how many each group has, and the groups' matrices; one matrix has one group."""
    if counts is not None:
        return x, counts, weights
    rows = x.flatten(0, -2)
    return rows, [rows.shape[0]], [weight.unsqueeze(0) for weight in weights]


def _relu_in_product(kernels: Any, x: Tensor, weight: Tensor, counts: Sequence[int] | None) -> Tensor:
    rows, of_group, weights = _by_groups(x, counts, weight)
    out: Tensor = kernels.grouped_relu(rows, *weights, of_group)
    return out.view(*x.shape[:-1], weight.shape[-1])


def _geglu_in_product(
    kernels: Any, x: Tensor, gate: Tensor, weight: Tensor, counts: Sequence[int] | None
) -> tuple[Tensor, ...]:
    rows, of_group, weights = _by_groups(x, counts, gate, weight)
    outs: Sequence[Tensor] = kernels.grouped_geglu(rows, *weights, of_group)
    return tuple(out.view(*x.shape[:-1], weight.shape[-1]) for out in outs)


def _in_products(kernels: Any) -> Products:
    """Those of experts, and those with an activation, which is in the product."""
    return Products(
        grouped_times=kernels.grouped_times,
        add_grouped_=partial(_add_grouped_, kernels),
        relu_times=partial(_relu_in_product, kernels),
        geglu_times=partial(_geglu_in_product, kernels),
        geglu_gradient_=kernels.geglu_gradient_,
    )


def cpu_products(kernels: Any) -> Products:
    """`ops.reference.products`'s by the kernels for a CPU."""
    of_one = {"times": kernels.times, "wide_times": kernels.wide_times, "add_outer_": partial(_add_outer_, kernels)}
    return replace(_in_products(kernels), **of_one)


def gpu_products(kernels: Any) -> Products:
    """`ops.reference.products`'s by the kernels for a GPU; of one matrix without an activation they are torch's."""
    return _in_products(kernels)
