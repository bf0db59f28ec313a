"""Products with weights, each with the addition into the gradient where there is one.

N rows (sorted by expert where they have experts), I inputs, O outputs; E experts, D inner and F outer width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference.products import Products


def _times_shapes(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


def _grouped_shapes(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[2])


def _changed(into: Tensor, *_: Any) -> Tensor:
    return into


def _times_flops(x: Tensor, weight: Tensor, **_: Any) -> int:
    return 2 * x.numel() * weight.shape[-1]


def _outer_flops(into: Tensor, rows: Tensor, cols: Tensor, *_: Any, **__: Any) -> int:
    return 2 * rows.numel() * cols.shape[-1]


def _grouped_flops(x: Tensor, weights: Tensor, counts: Sequence[int], **_: Any) -> int:
    return 2 * x.numel() * weights.shape[-1]


KERNELS = (
    Kernel("times", "(Tensor x, Tensor weight) -> Tensor", _times_shapes, _times_flops),
    Kernel("add_outer_", "(Tensor(a!) into, Tensor rows, Tensor cols) -> Tensor(a!)", _changed, _outer_flops),
    Kernel("grouped_times", "(Tensor x, Tensor weights, int[] counts) -> Tensor", _grouped_shapes, _grouped_flops),
    Kernel(
        "add_grouped_",
        "(Tensor(a!) into, Tensor rows, Tensor cols, int[] counts) -> Tensor(a!)",
        _changed,
        _outer_flops,
    ),
)


def _add_outer_(kernels: Any, into_IO: Tensor, rows_NI: Tensor, cols_NO: Tensor) -> None:
    kernels.add_outer_(into_IO, rows_NI, cols_NO)


def _add_grouped_(kernels: Any, into_EDF: Tensor, x_ND: Tensor, grad_NF: Tensor, counts: Sequence[int]) -> None:
    kernels.add_grouped_(into_EDF, x_ND, grad_NF, counts)


def products(kernels: Any) -> Products:
    """`ops.reference.products`'s by these kernels."""
    return Products(
        times=kernels.times,
        add_outer_=partial(_add_outer_, kernels),
        grouped_times=kernels.grouped_times,
        add_grouped_=partial(_add_grouped_, kernels),
    )
