"""Adafactor's passes, each one reading of the gradient: no update is ever written.

B matrices of R rows and C columns, U units, N elements; see `reference/adafactor.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel, nothing
from megaswitch.ops.reference import adafactor as reference
from megaswitch.ops.reference.adafactor import LEAST_SCALE, SQUARE_EPSILON, Passes, Step

KERNELS = (
    Kernel(
        "adafactor_mean_squares_",
        "(Tensor(a!) rows, Tensor(b!) cols, Tensor grad, float row_length, float col_length, float eps) -> ()",
        nothing,
    ),
    Kernel(
        "adafactor_squares_",
        "(Tensor(a!) sums, Tensor weights, Tensor grad, Tensor rows, Tensor cols) -> ()",
        nothing,
    ),
    Kernel(
        "adafactor_apply_",
        "(Tensor(a!) weights, Tensor grad, Tensor rows, Tensor cols, Tensor scale) -> ()",
        nothing,
    ),
    Kernel(
        "adafactor_update_",
        "(Tensor(a!) weights, Tensor(b!) rows, Tensor(c!) cols, Tensor grad, float decay, float lr, float clip,"
        " bool scaled, float eps, float least) -> ()",
        nothing,
    ),
    Kernel(
        "adafactor_moments_",
        "(Tensor(a!) second, Tensor(b!) sums, Tensor weights, Tensor grad, float decay, float eps) -> ()",
        nothing,
    ),
    Kernel(
        "adafactor_apply_moments_",
        "(Tensor(a!) weights, Tensor grad, Tensor second, Tensor scale) -> ()",
        nothing,
    ),
)


def _by(kernel: Callable[..., None], definition: Callable[..., None], *arguments: Any) -> None:
    """By the kernel, which reads a row's numbers side by side; where they are not (experts are factored dimensions) by
    torch."""
    side_by_side = all(x.stride(-1) == 1 for x in arguments if isinstance(x, Tensor))
    (kernel if side_by_side else definition)(*arguments)


def _update_(
    kernels: Any, weights_BRC: Tensor, rows_BR: Tensor, cols_BC: Tensor, grad_BRC: Tensor, step: Step
) -> None:
    numbers = (step.decay, step.lr, step.clip, step.scaled, SQUARE_EPSILON, LEAST_SCALE)
    kernels.adafactor_update_(weights_BRC, rows_BR, cols_BC, grad_BRC, *numbers)


def passes(kernels: Any) -> Passes:
    """`ops.reference.adafactor`'s passes by these kernels."""
    mean_squares_ = partial(kernels.adafactor_mean_squares_, eps=SQUARE_EPSILON)
    return Passes(
        add_mean_squares_=partial(_by, mean_squares_, reference.add_mean_squares_),
        add_squares_=partial(_by, kernels.adafactor_squares_, reference.add_squares_),
        apply_=partial(_by, kernels.adafactor_apply_, reference.apply_),
        update_=partial(_update_, kernels),
        add_moments_=partial(kernels.adafactor_moments_, eps=SQUARE_EPSILON),
        apply_moments_=kernels.adafactor_apply_moments_,
    )
