"""Adafactor's passes, each one reading of the gradient: no update is ever written.

B matrices of R rows and C columns, U units, N elements; see `reference/adafactor.py`.
"""

from functools import partial
from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference import adafactor as reference
from megaswitch.ops.reference.adafactor import LEAST_SCALE, SQUARE_EPSILON, Passes, Step


def _nothing(*_: Any) -> None:
    """In place: there is nothing to give."""


KERNELS = (
    Kernel(
        "adafactor_mean_squares_",
        "(Tensor(a!) rows, Tensor(b!) cols, Tensor grad, float row_length, float col_length, float eps) -> ()",
        _nothing,
    ),
    Kernel(
        "adafactor_squares_",
        "(Tensor(a!) sums, Tensor weights, Tensor grad, Tensor rows, Tensor cols) -> ()",
        _nothing,
    ),
    Kernel(
        "adafactor_apply_",
        "(Tensor(a!) weights, Tensor grad, Tensor rows, Tensor cols, Tensor scale) -> ()",
        _nothing,
    ),
    Kernel(
        "adafactor_update_",
        "(Tensor(a!) weights, Tensor(b!) rows, Tensor(c!) cols, Tensor grad, float decay, float lr, float clip,"
        " bool scaled, float eps, float least) -> ()",
        _nothing,
    ),
    Kernel(
        "adafactor_moments_",
        "(Tensor(a!) second, Tensor(b!) sums, Tensor weights, Tensor grad, float decay, float eps) -> ()",
        _nothing,
    ),
    Kernel(
        "adafactor_apply_moments_",
        "(Tensor(a!) weights, Tensor grad, Tensor second, Tensor scale) -> ()",
        _nothing,
    ),
)


def _side_by_side(grad_BRC: Tensor, *lines: Tensor) -> bool:
    """Whether kernels find a row's numbers side by side; else (experts are factored dimensions) torch does the work."""
    return grad_BRC.stride(2) == 1 and all(line.stride(1) == 1 for line in lines)


def _add_mean_squares_(
    kernels: Any, rows_BR: Tensor, cols_BC: Tensor, grad_BRC: Tensor, row_length: int, col_length: int
) -> None:
    if not _side_by_side(grad_BRC, rows_BR, cols_BC):
        return reference.add_mean_squares_(rows_BR, cols_BC, grad_BRC, row_length, col_length)
    kernels.adafactor_mean_squares_(rows_BR, cols_BC, grad_BRC, row_length, col_length, SQUARE_EPSILON)


def _add_squares_(
    kernels: Any, sums_2U: Tensor, weights_BRC: Tensor, grad_BRC: Tensor, rows_BR: Tensor, cols_BC: Tensor
) -> None:
    if not _side_by_side(grad_BRC, rows_BR, cols_BC):
        return reference.add_squares_(sums_2U, weights_BRC, grad_BRC, rows_BR, cols_BC)
    kernels.adafactor_squares_(sums_2U, weights_BRC, grad_BRC, rows_BR, cols_BC)


def _apply_(
    kernels: Any, weights_BRC: Tensor, grad_BRC: Tensor, rows_BR: Tensor, cols_BC: Tensor, scale_U: Tensor
) -> None:
    if not _side_by_side(grad_BRC, rows_BR, cols_BC):
        return reference.apply_(weights_BRC, grad_BRC, rows_BR, cols_BC, scale_U)
    kernels.adafactor_apply_(weights_BRC, grad_BRC, rows_BR, cols_BC, scale_U)


def _update_(
    kernels: Any, weights_BRC: Tensor, rows_BR: Tensor, cols_BC: Tensor, grad_BRC: Tensor, step: Step
) -> None:
    numbers = (step.decay, step.lr, step.clip, step.scaled, SQUARE_EPSILON, LEAST_SCALE)
    kernels.adafactor_update_(weights_BRC, rows_BR, cols_BC, grad_BRC, *numbers)


def _add_moments_(
    kernels: Any, second_N: Tensor, sums_21: Tensor, weights_N: Tensor, grad_N: Tensor, decay: float
) -> None:
    kernels.adafactor_moments_(second_N, sums_21, weights_N, grad_N, decay, SQUARE_EPSILON)


def passes(kernels: Any) -> Passes:
    """`ops.reference.adafactor`'s passes by these kernels."""
    return Passes(
        add_mean_squares_=partial(_add_mean_squares_, kernels),
        add_squares_=partial(_add_squares_, kernels),
        apply_=partial(_apply_, kernels),
        update_=partial(_update_, kernels),
        add_moments_=partial(_add_moments_, kernels),
        apply_moments_=kernels.adafactor_apply_moments_,
    )
