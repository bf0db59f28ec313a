"""AdamW in one pass, with the rounding of the weights that layers find, and gradients and moments of any type. Of one
type, without rounding, torch's fused form is that, and takes as long.

N elements.
"""

from dataclasses import astuple
from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel, nothing
from megaswitch.ops.reference import adamw as reference
from megaswitch.ops.reference.adamw import AdamStep

KERNELS = (
    Kernel(
        "adamw_",
        "(Tensor(a!) weights, Tensor grad, Tensor(b!) first, Tensor(c!) second, Tensor(d!)? rounded, float lr,"
        " float beta1, float beta2, float eps, float weight_decay, int count) -> ()",
        nothing,
    ),
)


def adamw_(
    kernels: Any,
    weights_N: Tensor,
    grad_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    rounded_N: Tensor | None,
    step: AdamStep,
) -> None:
    """`ops.reference.adamw.adamw_` by these kernels, and itself where torch's form has all there is to do."""
    if rounded_N is None and len({x.dtype for x in (weights_N, grad_N, first_N, second_N)}) == 1:
        return reference.adamw_(weights_N, grad_N, first_N, second_N, None, step)
    count, *numbers = astuple(step)
    kernels.adamw_(weights_N, grad_N, first_N, second_N, rounded_N, *numbers, count)
